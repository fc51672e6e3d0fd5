// Command mutate takes out, one at a time, the guards that exactness rests on,
// and runs the tests of the package: one of them must then fail, and pass when
// the guard is in place. A guard that can be taken out unnoticed is one that
// nobody tests.
//
//	go run ./.ci/mutate            all
//	go run ./.ci/mutate -run NAME  those whose name or file contains NAME
//
// Those of sink/redis need the servers that its tests need: .ci/servers. The
// tree is not touched: the compiler is given another text in a file's place.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// A suite is how a package's tests are run.
type suite struct {
	tags  string
	skip  string   // tests that say nothing about guards
	last  string   // tests that take long: run when the others have found nothing
	args  []string // of each run
	limit time.Duration
}

// suites by folder.
var suites = map[string]suite{
	".":              {skip: "TestImports|TestREADME", last: "TestModel|TestSimulation", args: []string{"-shrink", "0"}, limit: time.Minute},
	"sink/memory":    {limit: time.Minute},
	"sink/redis":     {tags: "servers", skip: "TestRules/cluster", last: "TestRules|TestHung|TestDocumentedRulesInCluster", limit: 2 * time.Minute},
	"source/channel": {limit: time.Minute},
	"source/kafka":   {last: "TestGroup", limit: 2 * time.Minute},
}

// A directed mutation names the quick tests that it is for. Should they miss it
// all the others are run as well.
type directed struct {
	tests string
	mutation
}

func main() {
	only := flag.String("run", "", "only mutations whose name or file contains this `text`")
	jobs := flag.Int("jobs", 2, "how many run side by side")
	flag.Parse()
	todo := slices.DeleteFunc(slices.Concat(ofRoot, ofSinks, ofSources), func(d directed) bool {
		return !strings.Contains(d.name, *only) && !strings.Contains(d.file, *only)
	})
	began := time.Now()
	passed, err := run(todo, *jobs)
	fmt.Printf("%d passed, %d failed, after %v\n", passed, len(todo)-passed, time.Since(began).Round(time.Second))
	if err != nil {
		fmt.Println(err)
	}
	if err != nil || len(todo) == 0 || passed < len(todo) {
		os.Exit(1)
	}
}

// run tries all and returns how many were noticed.
func run(todo []directed, jobs int) (passed int, err error) {
	work, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	// Each package as it is, to see that the tests which notice do not fail anyway.
	whole := map[string]*program{}
	for _, d := range todo {
		whole[d.folder()] = nil
	}
	for _, folder := range slices.Sorted(maps.Keys(whole)) {
		if whole[folder], err = build(filepath.Join(work, "whole-"+strings.ReplaceAll(folder, "/", "-")), folder, nil); err != nil {
			return 0, err
		}
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		places = make(chan struct{}, jobs)
	)
	for i, d := range todo {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			began := time.Now()
			found, err := d.try(filepath.Join(work, fmt.Sprint(i)), whole[d.folder()])
			took := time.Since(began).Round(100 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fmt.Printf("FAIL  %s: %s: %v (%v)\n", d.file, d.name, err, took)
				return
			}
			passed++
			fmt.Printf("ok    %s: %s: found by %s (%v)\n", d.file, d.name, found, took)
		})
	}
	wg.Wait()
	return passed, nil
}

// folder is that of the package which the file belongs to.
func (m mutation) folder() string {
	folder := filepath.Dir(m.file)
	for suites[folder].limit == 0 && folder != "." {
		folder = filepath.Dir(folder) // an embedded file's
	}
	return folder
}

// try returns the first test that notices the mutation.
func (d directed) try(file string, whole *program) (string, error) {
	text, err := os.ReadFile(d.file)
	if err != nil {
		return "", fmt.Errorf("%w: run from the module's root", err)
	}
	if n := bytes.Count(text, []byte(d.old)); n != 1 {
		return "", fmt.Errorf("the file holds %d times, not once: %s", n, d.old)
	}
	text = bytes.Replace(text, []byte(d.old), []byte(d.new), 1)
	mutant, err := build(file, d.folder(), map[string][]byte{d.file: text})
	if err != nil {
		return "", err
	}
	defer os.Remove(mutant.file)
	s := mutant.suite
	var picks [][]string
	if d.tests != "" {
		picks = append(picks, []string{"-test.run", d.tests, "-test.timeout", "20s"})
	}
	picks = append(picks, []string{"-test.skip", join(s.skip, s.last)})
	if s.last != "" {
		picks = append(picks, []string{"-test.run", s.last, "-test.skip", s.skip})
	}
	for _, pick := range picks {
		failed, err := mutant.run(pick...)
		if err != nil {
			return "", err
		}
		if failed == nil {
			continue
		}
		if failed.test != "" {
			pick = []string{"-test.run", exactly(failed.test)}
			if err := mutant.again(pick...); err != nil {
				return "", err
			}
		}
		if err := whole.passes(pick...); err != nil {
			return "", err
		}
		return cmp.Or(failed.test, failed.panic), nil
	}
	return "", fmt.Errorf("no test noticed; it %s", d.harm)
}

func join(patterns ...string) string {
	return strings.Join(slices.DeleteFunc(patterns, func(p string) bool { return p == "" }), "|")
}

// exactly returns a pattern for a test and its subtests.
func exactly(test string) string {
	parts := strings.Split(test, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// A program is the tests of a package.
type program struct {
	suite
	folder, file string

	mu     sync.Mutex
	passed map[string]bool // what was run and did not fail
}

// build compiles the tests of a package, with other texts in the place of files.
func build(file, folder string, texts map[string][]byte) (*program, error) {
	s, ok := suites[folder]
	if !ok {
		return nil, fmt.Errorf("nothing is known of the tests in %s", folder)
	}
	args := []string{"test", "-c", "-ldflags=-s -w", "-o", file, "-tags", s.tags} // no symbols: quicker to link
	if len(texts) > 0 {
		overlay := map[string]map[string]string{"Replace": {}}
		for name, text := range texts {
			path, err := filepath.Abs(name)
			if err != nil {
				return nil, err
			}
			changed := file + filepath.Ext(name)
			if err := os.WriteFile(changed, text, 0o666); err != nil {
				return nil, err
			}
			overlay["Replace"][path] = changed
		}
		text, err := json.Marshal(overlay)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file+".json", text, 0o666); err != nil {
			return nil, err
		}
		args = append(args, "-overlay", file+".json")
	}
	if out, err := exec.Command("go", append(args, "./"+folder)...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("does not compile: %s", out)
	}
	return &program{suite: s, folder: folder, file: file, passed: map[string]bool{}}, nil
}

// A failure is what a run ended with: a test that failed, else a panic.
type failure struct{ test, panic, out string }

// run runs some tests until one fails; nil: none has.
func (p *program) run(pick ...string) (*failure, error) {
	// A mutant may also go on for ever, which is noticed too.
	ctx, cancel := context.WithTimeout(context.Background(), p.limit+10*time.Second)
	defer cancel()
	args := slices.Concat([]string{"-test.failfast", "-test.timeout", p.limit.String()}, pick, p.args)
	cmd := exec.CommandContext(ctx, p.file, args...)
	cmd.Dir = p.folder
	out, err := cmd.CombinedOutput()
	var status *exec.ExitError
	if err == nil || !errors.As(err, &status) {
		return nil, err
	}
	f := failure{out: string(out)}
	for line := range strings.Lines(f.out) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "--- FAIL: "); ok {
			// A subtest follows the test that it belongs to.
			if name := strings.Fields(rest)[0]; f.test == "" || strings.HasPrefix(name, f.test+"/") {
				f.test = name
			}
		}
		if strings.HasPrefix(line, "panic: ") && f.panic == "" {
			f.panic = line
		}
	}
	if f.test == "" && f.panic == "" {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return &f, nil
}

// again runs tests that have failed: once might be chance. Those that lose a
// race need not do so each time, so it tries for a while.
func (p *program) again(pick ...string) error {
	for end := time.Now().Add(p.limit / 2); time.Now().Before(end); {
		if failed, err := p.run(pick...); failed != nil || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s failed, and not again", pick)
}

// passes runs tests that must not fail, each selection once.
func (p *program) passes(pick ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := strings.Join(pick, " ")
	if p.passed[key] {
		return nil
	}
	failed, err := p.run(pick...)
	if err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("%s fails in any case: %s", cmp.Or(failed.test, key), failed.out)
	}
	p.passed[key] = true
	return nil
}
