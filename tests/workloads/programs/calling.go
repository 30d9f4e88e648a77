// A server that calls itself all the time, with a connection for each call; every call is answered.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
)

const callers, warm = 8, 500

var answered atomic.Int64

func done() bool {
	_, err := os.Stat("/work/check")
	return err == nil
}

func call(client *http.Client, path string) error {
	answer, err := client.Get("http://127.0.0.1:8080" + path)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && string(text) != path {
		err = fmt.Errorf("%s: answered %q", path, text)
	}
	return err
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		fmt.Fprint(answer, request.URL.Path)
	}))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	wrong := make(chan error, callers)
	var all sync.WaitGroup
	for i := 0; i < callers; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			for number := 0; !done(); number++ {
				if err := call(client, fmt.Sprintf("/%d/%d", i, number)); err != nil {
					wrong <- err
					return
				}
				if answered.Add(1) == warm {
					os.WriteFile("/work/ready", nil, 0o644)
				}
			}
		}(i)
	}
	all.Wait()
	select {
	case err := <-wrong:
		os.WriteFile("/work/out", []byte(err.Error()), 0o644)
		os.Exit(1)
	default:
		os.WriteFile("/work/out", []byte("ok\n"), 0o644)
	}
}
