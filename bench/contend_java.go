package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
)

// javaBuilds are the Maven projects that were built, by folder.
var javaBuilds = struct {
	mu   sync.Mutex
	done map[string]built
}{done: map[string]built{}}

type built struct {
	dir string
	err error
}

// buildJava builds the Maven project of a folder, unless the user's cache has
// it, and returns where.
func buildJava(folder string) (string, error) {
	javaBuilds.mu.Lock()
	defer javaBuilds.mu.Unlock()
	b, ok := javaBuilds.done[folder]
	if !ok {
		b.dir, b.err = makeJava(folder)
		javaBuilds.done[folder] = b
	}
	return b.dir, b.err
}

func makeJava(folder string) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	project := os.DirFS(filepath.Join(root, "bench", folder))
	sum := sha256.New()
	err = fs.WalkDir(project, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(project, path)
		fmt.Fprintf(sum, "%s %d\n", path, len(text))
		sum.Write(text)
		return err
	})
	if err != nil {
		return "", err
	}
	parent, err := cacheDir(folder)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(parent, fmt.Sprintf("%x", sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if out, err := exec.Command(filepath.Join(root, "scripts", "install"), "javac=default-jdk-headless", "mvn=maven").CombinedOutput(); err != nil {
		return "", fmt.Errorf("no Java compiler or Maven: %w\n%s", err, out)
	}
	fmt.Fprintf(os.Stderr, "bench: building %s\n", folder)
	work, err := os.MkdirTemp(parent, "new-") // Maven writes beside the project
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(filepath.Join(work, folder), project); err != nil {
		return "", err
	}
	maven := exec.Command("mvn", "-B", "-q", "compile", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib")
	maven.Dir = filepath.Join(work, folder)
	if out, err := maven.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mvn in bench/%s: %w\n%s", folder, err, out)
	}
	if err := os.Rename(maven.Dir, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

func javaMissing(folder string) func() string {
	return func() string {
		if _, err := buildJava(folder); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", folder, err)
			return firstLine(err)
		}
		return ""
	}
}

// java returns the command of a contender that is a Maven project.
func java(folder string) func(context.Context, job) (*exec.Cmd, error) {
	return func(ctx context.Context, j job) (*exec.Cmd, error) {
		dir, err := buildJava(folder)
		if err != nil {
			return nil, err
		}
		return exec.CommandContext(ctx, "java", "-Xmx2g", "-Djava.io.tmpdir="+j.scratch, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
			"--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED", // as Flink's own scripts do
			"-cp", filepath.Join(dir, "target", "classes")+":"+filepath.Join(dir, "lib", "*"), "ClickCounts",
			j.kafka, j.topic.name(), j.group, strconv.Itoa(j.topic.n)), nil
	}
}
