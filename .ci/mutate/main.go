// Command mutate takes out, one at a time, the guards that exactness rests on,
// and runs the root package's tests: each must then fail. A guard that can be
// taken out unnoticed is one that nobody tests.
//
//	go run ./.ci/mutate            all
//	go run ./.ci/mutate -run NAME  those whose name contains NAME
//
// It works on a copy; the tree is not touched.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

func main() {
	only := flag.String("run", "", "only mutations whose name contains this `text`")
	jobs := flag.Int("jobs", 2, "how many run side by side")
	flag.Parse()
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		places = make(chan struct{}, *jobs)
		passed int
		failed int
	)
	for _, m := range mutations {
		if !strings.Contains(m.name, *only) {
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			found, err := try(m)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				fmt.Printf("FAIL  %s: %v\n", m.name, err)
				return
			}
			passed++
			fmt.Printf("ok    %s: found by %s\n", m.name, found)
		})
	}
	wg.Wait()
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// try applies m to a copy of the root package and returns the first test that
// noticed.
func try(m mutation) (string, error) {
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, pattern := range []string{"*.go", "go.mod", "go.sum", "README.md", "sink/memory/*.go", "source/channel/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			return "", fmt.Errorf("no %s here: run from the module's root", pattern)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			if f == m.file {
				if n := bytes.Count(text, []byte(m.old)); n != 1 {
					return "", fmt.Errorf("%s holds %d times, not once: %s", f, n, m.old)
				}
				text = bytes.Replace(text, []byte(m.old), []byte(m.new), 1)
			}
			to := filepath.Join(dir, f)
			if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
				return "", err
			}
			if err := os.WriteFile(to, text, 0o666); err != nil {
				return "", err
			}
		}
	}
	// A mutant may also spin for ever, which is noticed too.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(dir, "root.test"), ".")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not compile: %s", out)
	}
	// Each rule has a quick test of its own; what those miss the random ones may find.
	const random = "TestModel|TestSimulation"
	var out []byte
	for _, pick := range [][]string{{"-test.skip", random + "|TestImports|TestREADME"}, {"-test.run", random}} {
		test := exec.CommandContext(ctx, filepath.Join(dir, "root.test"), append(pick, "-test.failfast", "-test.timeout", "60s", "-shrink", "0")...)
		test.Dir = dir
		if out, err = test.CombinedOutput(); err != nil {
			break
		}
	}
	if err == nil {
		return "", fmt.Errorf("no test noticed; it %s", m.harm)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			return strings.Fields(name)[0], nil
		}
		if strings.HasPrefix(line, "panic: ") {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("%w: %s", err, out)
}
