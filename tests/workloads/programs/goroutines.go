// Goroutines, channels, timers, garbage collection, files and a server; nothing is lost or doubled.
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	wrong []string
	lock  sync.Mutex
)

func differs(format string, arguments ...any) {
	lock.Lock()
	defer lock.Unlock()
	wrong = append(wrong, fmt.Sprintf(format, arguments...))
}

func done() bool {
	_, err := os.Stat("/work/check")
	return err == nil
}

func buffer(number int) []byte { return []byte(strings.Repeat(fmt.Sprint("buffer ", number), 1000)) }

type result struct {
	number int
	hash   [32]byte
}

func hashing() {
	numbers, results := make(chan int, 10), make(chan result, 10)
	var workers sync.WaitGroup
	for i := 0; i < 50; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := range numbers {
				results <- result{number, sha256.Sum256(buffer(number))}
			}
		}()
	}
	sent := 0
	go func() {
		for ; !done(); sent++ {
			numbers <- sent
		}
		close(numbers)
		workers.Wait()
		close(results)
	}()
	seen := map[int]bool{}
	for got := range results {
		if seen[got.number] || got.hash != sha256.Sum256(buffer(got.number)) {
			differs("buffer %d", got.number)
		}
		seen[got.number] = true
		if len(seen) == 200 {
			os.WriteFile("/work/ready", nil, 0o644)
		}
		if len(seen)%50 == 0 {
			os.WriteFile("/work/progress", []byte(fmt.Sprint(len(seen))), 0o644)
		}
	}
	if len(seen) != sent {
		differs("%d sent, %d came", sent, len(seen))
	}
}

func ticking() {
	ticker := time.NewTicker(5 * time.Millisecond)
	last, ticks := time.Now(), 0
	for !done() {
		now := <-ticker.C
		if now.Sub(last) < 0 {
			differs("time goes back")
		}
		last = now
		ticks++
	}
	if ticks < 3 {
		differs("only %d ticks", ticks)
	}
}

func collecting() {
	var alive [64][]byte
	for i := 0; !done(); i++ {
		alive[i%64] = buffer(i % 64)
		if i%200 == 0 {
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
		for number, memory := range alive {
			if memory != nil && i%50 == 0 && string(memory) != string(buffer(number)) {
				differs("memory %d", number)
			}
		}
	}
}

func echoing() {
	listener, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		differs("%v", err)
		return
	}
	var served int64
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			text, _ := bufio.NewReader(connection).ReadString('\n')
			fmt.Fprint(connection, text)
			connection.Close()
			atomic.AddInt64(&served, 1)
		}
	}()
	for !done() { // no connection is open at the freeze: that is for later
		time.Sleep(2 * time.Millisecond)
	}
	for i := 0; i < 20; i++ {
		connection, err := net.Dial("tcp", "127.0.0.1:8080")
		if err != nil {
			differs("%v", err)
			return
		}
		fmt.Fprintln(connection, "number", i)
		text, _ := bufio.NewReader(connection).ReadString('\n')
		if text != fmt.Sprintln("number", i) {
			differs("echo %d: %q", i, text)
		}
		connection.Close()
	}
	listener.Close()
}

func main() {
	var all sync.WaitGroup
	for _, work := range []func(){hashing, ticking, collecting, echoing} {
		all.Add(1)
		go func(work func()) {
			defer all.Done()
			work()
		}(work)
	}
	all.Wait()
	if len(wrong) == 0 {
		os.WriteFile("/work/out", []byte("ok\n"), 0o644)
		return
	}
	os.WriteFile("/work/out", []byte(strings.Join(wrong, "\n")), 0o644)
	os.Exit(1)
}
