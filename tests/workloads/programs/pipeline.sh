#!/bin/bash
# Five processes move a counted stream through pipes and a FIFO; two of them count what comes out.
cd /work || exit 1
mkfifo side
count='{ if ($1 != n) { print "expected " n ", got " $1; exit 1 } n++ } END { print n }'

sed -u 's/^number //' < side | awk "$count" > counted-at-the-side &
side=$!

produce() {
    local n=0
    while [ ! -e check ]; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            echo "number $n"
            n=$((n + 1))
        done
        [ $n -ge 20000 ] && [ ! -e ready ] && touch ready
    done
    echo $n > produced
}

produce | cat | tee side | sed 's/^number //' | awk "$count" > counted
statuses=${PIPESTATUS[*]}
wait $side
side=$?
if [ "$statuses $side" = "0 0 0 0 0 0" ] && cmp produced counted && cmp produced counted-at-the-side; then
    echo ok > out
else
    { echo "statuses $statuses $side"; head -n 3 produced counted counted-at-the-side; } > out
    exit 1
fi
