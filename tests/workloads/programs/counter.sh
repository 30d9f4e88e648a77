#!/bin/sh
# Counts into a file, a line each.
n=0
while :; do
    echo $n >> /work/numbers
    n=$((n + 1))
    [ $n = 10 ] && : > /work/ready
    sleep 0.01
done
