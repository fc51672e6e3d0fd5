package web

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// words are what paths and answers call things.
type words struct{ item, key, keys string }

// standard are the words of the description, and of the paths in the code.
var standard = words{item: "clicks", key: "user_id", keys: "users"}

//go:embed openapi.json
var description string

var (
	wordForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	// taken are words that stand beside those of Config, in a path or in an answer.
	taken = regexp.MustCompile(`^(minute|minutes|state|total|top|cursor|progress|events|healthz|readyz|metrics|error|from|to|window)$`)
	// named are the standard words, wherever they are names: in a path, between quotes.
	named = regexp.MustCompile(`\b(clicks|user_id|users)\b`)
)

func (w words) check() error {
	for name, word := range map[string]string{"Item": w.item, "Key": w.key, "Keys": w.keys} {
		if !wordForm.MatchString(word) || taken.MatchString(word) {
			return fmt.Errorf("web: Config.%s is %q, must be a word of lower-case letters, digits and _ that has no other meaning in the API", name, word)
		}
	}
	if w.item == w.key || w.item == w.keys || w.key == w.keys {
		return fmt.Errorf("web: Config.Item, Key and Keys must be three different words, they are %q, %q and %q", w.item, w.key, w.keys)
	}
	return nil
}

// rename replaces the standard words of a text.
func (w words) rename(text string) string {
	return named.ReplaceAllStringFunc(text, func(word string) string {
		switch word {
		case standard.item:
			return w.item
		case standard.key:
			return w.key
		}
		return w.keys
	})
}

// describe returns the OpenAPI document in these words.
func (w words) describe() string { return w.rename(description) }

// of returns the document for an API whose paths begin with base, over counts of these
// windows.
func (w words) of(document, base string, windows []string) string {
	if base != "" {
		document = strings.Replace(document, `"url": "/"`, `"url": `+quoted(base), 1)
	}
	if len(windows) > 0 {
		document = strings.Replace(document, anyWindow, `"enum": `+quoted(windows), 1)
	}
	return document
}

// anyWindow is what the description says of a window while none is known.
const anyWindow = `"examples": [
            "1h",
            "day Europe/Berlin"
          ]`

func quoted(x any) string {
	text, _ := json.Marshal(x) // strings have a form
	return string(text)
}
