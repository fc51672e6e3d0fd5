// Command mutate takes out, one at a time, the guards that exactness rests on,
// and runs the tests of the package, and then those of others that test it too:
// one of them must fail, and pass when the guard is in place. A guard that can be
// taken out unnoticed is one that nobody tests.
//
//	go run ./internal/cmd/mutate            all
//	go run ./internal/cmd/mutate -run NAME  those whose name or file contains NAME
//	go run ./internal/cmd/mutate -part 2/3  every third one, from the second on
//	go run ./internal/cmd/mutate -check     only that each guard is found, once, each test, and that the rest compiles
//
// Those of sink/redis need the servers that its tests need: scripts/servers. The
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
	"go/ast"
	buildcontext "go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
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
	also  []string // folders of packages that test this one, too: run when its own tests have found nothing
	args  []string // of each run
	limit time.Duration
}

// notCode are the tests of what is written about the code.
const notCode = "TestImports|TestREADME|TestLinks|TestDocumentedCode|TestOperations|TestFileMap"

// suites by folder.
var suites = map[string]suite{
	".":                   {skip: notCode, also: []string{"internal/simulation"}, limit: time.Minute},
	"internal/simulation": {args: []string{"-shrink", "0"}, limit: time.Minute},
	"sink/memory":         {limit: time.Minute},
	"sink/redis":          {tags: "servers", skip: "TestRules/(cluster|valkey|redis_6|sentinel)", last: "TestRules|TestHung|TestDocumentedRulesInCluster", limit: 4 * time.Minute},
	"source/channel":      {limit: time.Minute},
	"source/kafka":        {last: "TestGroup", limit: 2 * time.Minute},

	"web":                              {limit: time.Minute},
	"source/kafka/internal/jsonfields": {limit: time.Minute},
	"source/kafka/internal/wire":       {limit: time.Minute},
}

// A directed mutation names the quick tests that it is for, which may be in any
// package of its suite. Should they miss it all the others are run as well.
type directed struct {
	tests string
	mutation
}

func main() {
	only := flag.String("run", "", "only mutations whose name or file contains this `text`")
	jobs := flag.Int("jobs", 2, "how many run side by side")
	check := flag.Bool("check", false, "only check that each guard is found, once, and each test, and that the rest compiles")
	share := part{1, 1}
	flag.TextVar(&share, "part", share, "only every Nth of them, from the Kth on, as `K/N`")
	flag.Parse()
	todo := slices.DeleteFunc(slices.Concat(ofRoot, ofSinks, ofSources, ofWeb), func(d directed) bool {
		return !strings.Contains(d.name, *only) && !strings.Contains(d.file, *only)
	})
	err := found(todo)
	if err == nil && *check {
		err = compiles(todo)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if *check {
		fmt.Printf("%d guards found\n", len(todo))
		return
	}
	all := len(todo)
	todo = share.of(todo)
	fmt.Printf("%d of %d guards are taken out\n", len(todo), all)
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

// A part is every n-th mutation, from the k-th on. Rows that stand beside each
// other cost about the same, so that all parts take about as long.
type part struct{ k, n int }

func (p part) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d/%d", p.k, p.n), nil }

func (p *part) UnmarshalText(text []byte) error {
	var q part
	if n, err := fmt.Sscanf(string(text), "%d/%d", &q.k, &q.n); n != 2 || err != nil || q.k < 1 || q.k > q.n {
		return fmt.Errorf("is %q, must be K/N with 1 <= K <= N", text)
	}
	*p = q
	return nil
}

func (p part) of(all []directed) (some []directed) {
	for i := p.k - 1; i < len(all); i += p.n {
		some = append(some, all[i])
	}
	return some
}

// found returns the mutations that cannot be made, those that come twice, and those
// whose tests are not there.
func found(todo []directed) error {
	var errs []error
	written := map[string]*program{}
	for folder := range suites {
		tests, err := testsIn(folder)
		if err != nil {
			return err
		}
		written[folder] = &program{tests: tests}
	}
	seen := map[[3]string]bool{}
	for _, d := range todo {
		_, err := d.text()
		if err == nil {
			_, err = d.picks(written)
		}
		if id := [3]string{d.file, d.old, d.new}; err == nil && seen[id] {
			err = errors.New("another mutation does the same")
		} else {
			seen[id] = true
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", d.file, d.name, err))
		}
	}
	return errors.Join(errs...)
}

// testsIn returns the names of the tests in a folder's files, whatever their tags.
func testsIn(folder string) (names []string, err error) {
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
	}
	return names, nil
}

// compiles returns the mutations without which the package is not one: an import or
// a variable that nothing else uses.
func compiles(todo []directed) error {
	var errs []error
	fset := token.NewFileSet()
	exports, err := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", "./...").Output()
	if err != nil {
		return fmt.Errorf("go list -export: %w", err)
	}
	exported := map[string]string{}
	for line := range strings.Lines(string(exports)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exported[path] = file
	}
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exported[path]) })
	files := map[string]*ast.File{}
	for _, d := range todo {
		if filepath.Ext(d.file) != ".go" {
			continue
		}
		folder := filepath.Dir(d.file)
		p, err := buildcontext.ImportDir(folder, 0)
		if err != nil {
			return err
		}
		text, err := d.text()
		if err != nil {
			return err
		}
		mutant, err := parser.ParseFile(fset, d.file, text, 0)
		all := []*ast.File{mutant}
		for _, name := range p.GoFiles {
			name = filepath.Join(folder, name)
			if files[name] == nil && err == nil {
				files[name], err = parser.ParseFile(fset, name, nil, 0)
			}
			if name != d.file {
				all = append(all, files[name])
			}
		}
		if err == nil {
			_, err = (&types.Config{Importer: imports}).Check(folder, fset, all, nil)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: does not compile: %w", d.file, d.name, err))
		}
	}
	return errors.Join(errs...)
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
		for _, folder := range d.folders() {
			whole[folder] = nil
		}
	}
	for _, folder := range slices.Sorted(maps.Keys(whole)) {
		if whole[folder], err = build(filepath.Join(work, "whole-"+strings.ReplaceAll(folder, "/", "-")), folder, nil); err != nil {
			return 0, err
		}
		if err := whole[folder].list(); err != nil {
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
			found, err := d.try(filepath.Join(work, fmt.Sprint(i)), whole)
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

// text returns the file without the guard.
func (m mutation) text() ([]byte, error) {
	text, err := os.ReadFile(m.file)
	if err != nil {
		return nil, fmt.Errorf("%w: run from the module's root", err)
	}
	if n := bytes.Count(text, []byte(m.old)); n != 1 || m.old == m.new {
		return nil, fmt.Errorf("the file holds %d times, not once: %s", n, m.old)
	}
	return bytes.Replace(text, []byte(m.old), []byte(m.new), 1), nil
}

// folder is that of the package which the file belongs to.
func (m mutation) folder() string {
	folder := filepath.Dir(m.file)
	for suites[folder].limit == 0 && folder != "." {
		folder = filepath.Dir(folder) // an embedded file's
	}
	return folder
}

// folders are those of the packages whose tests may notice the mutation, its own
// first.
func (m mutation) folders() []string {
	own := m.folder()
	return slices.Concat([]string{own}, suites[own].also)
}

// A pick is tests to run of one package.
type pick struct {
	folder string
	args   []string
}

// picks returns what to run until something fails: the directed tests, the others
// of the package, and those of the packages that test it too.
func (d directed) picks(whole map[string]*program) (all []pick, err error) {
	for _, name := range strings.Split(d.tests, "|") {
		if name != "" && !slices.ContainsFunc(d.folders(), func(folder string) bool { return whole[folder].has(name) }) {
			return nil, fmt.Errorf("no test is called %s", name)
		}
	}
	for _, folder := range d.folders() {
		if whole[folder].has(d.tests) {
			all = append(all, pick{folder, []string{"-test.run", d.tests, "-test.timeout", "20s"}})
		}
	}
	for _, folder := range d.folders() {
		s := suites[folder]
		all = append(all, pick{folder, []string{"-test.skip", join(s.skip, s.last)}})
		if s.last != "" {
			all = append(all, pick{folder, []string{"-test.run", s.last, "-test.skip", s.skip}})
		}
	}
	return all, nil
}

// try returns the first test that notices the mutation.
func (d directed) try(file string, whole map[string]*program) (string, error) {
	text, err := d.text()
	if err != nil {
		return "", err
	}
	picks, err := d.picks(whole)
	if err != nil {
		return "", err
	}
	mutants := map[string]*program{}
	for _, p := range picks {
		mutant := mutants[p.folder]
		if mutant == nil {
			mutant, err = build(fmt.Sprint(file, "-", len(mutants)), p.folder, map[string][]byte{d.file: text})
			if err != nil {
				return "", err
			}
			defer os.Remove(mutant.file)
			mutants[p.folder] = mutant
		}
		failed, err := mutant.run(p.args...)
		if err != nil {
			return "", err
		}
		if failed == nil {
			continue
		}
		if failed.test != "" {
			p.args = []string{"-test.run", exactly(failed.test)}
			if err := mutant.again(p.args...); err != nil {
				return "", err
			}
		}
		if err := whole[p.folder].passes(p.args...); err != nil {
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
	tests        []string // names of all; of the package as it is

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

// list finds out which tests there are.
func (p *program) list() error {
	cmd := exec.Command(p.file, "-test.list", ".")
	cmd.Dir = p.folder
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("list the tests of %s: %w", p.folder, err)
	}
	p.tests = strings.Fields(string(out))
	return nil
}

// has reports whether tests match a pattern of names. Only the tests are looked
// at, not their subtests.
func (p *program) has(pattern string) bool {
	names := regexp.MustCompile(`/[^|]*`).ReplaceAllString(pattern, "")
	return pattern != "" && slices.ContainsFunc(p.tests, regexp.MustCompile(names).MatchString)
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
