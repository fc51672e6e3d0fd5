package tumble_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// pages returns the texts of all Markdown pages, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			texts[path] = string(text)
		}
	}
	return texts
}

// sources returns the texts of all Go files of the repository, by path.
func sources(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	require.NoError(t, fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		texts[path] = string(text)
		return err
	}))
	return texts
}

// code is a fenced block.
var code = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// anchors returns what a link to a heading of a page may be.
func anchors(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(code.ReplaceAllString(text, ""), -1) {
		heading := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(heading, " ", "-"))
	}
	return all
}

// TestLinks follows the links between the pages and to the code.
func TestLinks(t *testing.T) {
	texts := pages(t)
	links := 0
	for path, text := range texts {
		for _, m := range regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(code.ReplaceAllString(text, ""), -1) {
			to, anchor := filepath.Join(filepath.Dir(path), m[1]), m[2]
			if strings.Contains(m[1], "://") {
				continue
			}
			if m[1] == "" {
				to = path
			}
			links++
			_, err := os.Stat(to)
			require.NoError(t, err, "%s links to %s", path, m[0])
			if anchor != "" {
				require.Contains(t, anchors(texts[to]), anchor, "%s links to %s", path, m[0])
			}
		}
	}
	require.Greater(t, links, 20)
}

// TestDocumentedCode wants each block of Go to be part of a file that compiles,
// and each target of make to be one.
func TestDocumentedCode(t *testing.T) {
	files := slices.Collect(maps.Values(sources(t)))
	makefile, err := os.ReadFile("Makefile")
	require.NoError(t, err)
	blocks, targets := 0, 0
	for path, text := range pages(t) {
		for _, m := range code.FindAllStringSubmatch(text, -1) {
			if m[1] == "go" {
				blocks++
				require.True(t, slices.ContainsFunc(files, func(file string) bool { return holds(file, m[2]) }), "no Go file holds this part of %s:\n%s", path, m[2])
			}
		}
		for _, m := range regexp.MustCompile("`make ([^`]*)`").FindAllStringSubmatch(text, -1) {
			for _, target := range strings.Fields(m[1]) {
				if strings.Contains(target, "=") {
					break // ARGS and the like, which may hold blanks
				}
				targets++
				require.True(t, strings.Contains(string(makefile), "\n"+target+": ## "), "%s names %q, which is no target of make", path, target)
			}
		}
	}
	require.GreaterOrEqual(t, blocks, 3)
	require.GreaterOrEqual(t, targets, 10)
}

// holds reports whether a file holds a text, which may be indented there.
func holds(file, text string) bool {
	for tabs := range 5 {
		if strings.Contains(file, regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(text, strings.Repeat("\t", tabs)+"$1")) {
			return true
		}
	}
	return false
}

// TestLinksForModels wants each link of llms.txt to lead to a file, and each page and
// package to be there.
func TestLinksForModels(t *testing.T) {
	text, err := os.ReadFile("llms.txt")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(text), "# tumble\n\n> "), "a title, and what it is, as https://llmstxt.org asks for")
	linked := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^- \[.+?\]\((.+?)\): \S`).FindAllStringSubmatch(string(text), -1) {
		_, err := os.Stat(m[1])
		require.NoError(t, err)
		linked[m[1]] = true
	}
	for page := range pages(t) {
		if strings.HasPrefix(page, "docs/") {
			require.True(t, linked[page], "llms.txt does not name %s", page)
		}
	}
}

// TestOperations wants the log lines and metrics that operators are told about to
// be in the code.
func TestOperations(t *testing.T) {
	var all strings.Builder
	for path, text := range sources(t) {
		if !strings.HasSuffix(path, "_test.go") {
			all.WriteString(text)
		}
	}
	text := pages(t)["docs/operations.md"]
	metrics := regexp.MustCompile("`(tumble_\\w+)`").FindAllStringSubmatch(text, -1)
	require.NotEmpty(t, metrics)
	for _, m := range metrics {
		require.True(t, strings.Contains(all.String(), `"`+m[1]+`"`), "no metric is called %s", m[1])
	}
	_, lines, ok := strings.Cut(text, "\n## Log lines\n")
	require.True(t, ok)
	lines, _, _ = strings.Cut(lines, "\n## ")
	told := 0
	var rows []string
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \| (warn|error|info) \|`).FindAllStringSubmatch(lines, -1) {
		for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(row[1], -1) {
			told++
			rows = append(rows, strings.TrimSuffix(m[1], "..."))
			line := `"` + rows[len(rows)-1]
			require.True(t, strings.Contains(all.String(), line), "nothing logs %s", line)
		}
	}
	require.Greater(t, told, 10)
	// And each line of the library is told of.
	logs := regexp.MustCompile(`\.(?:Warn|Error)\("([^"]+)"`)
	for path, text := range sources(t) {
		if room, _, _ := strings.Cut(path, "/"); strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/") && !slices.Contains([]string{"source", "sink", "web"}, room) {
			continue
		}
		for _, m := range logs.FindAllStringSubmatch(text, -1) {
			require.True(t, slices.ContainsFunc(rows, func(row string) bool { return strings.HasPrefix(m[1], row) }), "%s: the operations page does not tell of %q", path, m[1])
		}
	}
}

// TestFileMap compares the map of the files with the folders.
func TestFileMap(t *testing.T) {
	_, text, ok := strings.Cut(pages(t)["docs/design.md"], "\n## File map\n")
	require.True(t, ok)
	for _, section := range strings.Split(text, "\n### ")[1:] {
		heading, table, _ := strings.Cut(section, "\n")
		folder := heading
		if strings.HasPrefix(heading, "The root") {
			folder = "."
		} else if heading == "The rest" {
			continue // folders, some of them in other modules
		}
		var told []string
		for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \| \S.* \|$`).FindAllStringSubmatch(table, -1) {
			for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(row[1], -1) {
				told = append(told, m[1])
			}
		}
		var there []string
		for _, pattern := range []string{"*.go", "script/*.lua"} {
			paths, err := filepath.Glob(filepath.Join(folder, pattern))
			require.NoError(t, err)
			for _, path := range paths {
				name, err := filepath.Rel(folder, path)
				require.NoError(t, err)
				if !strings.HasSuffix(name, "_test.go") {
					there = append(there, filepath.ToSlash(name))
				}
			}
		}
		require.NotEmpty(t, there, folder)
		require.ElementsMatch(t, there, told, "the file map of %s in docs/design.md", folder)
	}
}
