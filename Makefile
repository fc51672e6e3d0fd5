# What people run here. `make` alone lists the targets; ARGS is handed on to
# the program that a target runs: make chaos ARGS="-for 5m -kills 100".

SHELL := bash
ARGS ?=
FUZZTIME ?= 10s

# One place says which version is used: the check of a clone.
staticcheck := honnef.co/go/tools/cmd/staticcheck@$(shell sed -n 's/^staticcheck=//p' .ci/run)

# Servers that the environment names are used. Otherwise our own are started,
# and run on until `make servers-down`.
with_servers := if [[ -z $$TUMBLE_KAFKA ]]; then scripts/servers up && env=$$(scripts/servers env) && eval "$$env"; fi &&

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done

.PHONY: test
test: ## all tests that need nothing but Go
	go test ./...

.PHONY: test-race
test-race: ## the same with the race detector, in random order
	CGO_ENABLED=1 go test -race -shuffle=on ./...

.PHONY: test-servers
test-servers: ## all tests, on real servers too, with the race detector
	$(with_servers) CGO_ENABLED=1 go test -race -shuffle=on -tags servers ./...

.PHONY: simulate
simulate: ## model and simulation with 10,000 seeds
	go test ./internal/simulation -seeds 10000 -timeout 0 $(ARGS)

.PHONY: lint
lint: ## gofmt, go mod tidy, go vet and staticcheck, with and without the tag servers
	@badly=$$(gofmt -l .); if [[ -n $$badly ]]; then printf 'not formatted:\n%s\n' "$$badly"; exit 1; fi
	go mod tidy -diff
	go vet ./...
	go vet -tags servers ./...
	GOARCH=386 go vet ./...
	GOARCH=arm go vet ./...
	go run $(staticcheck) ./...
	go run $(staticcheck) -tags servers ./...
	@set -e; for module in $$(go list -m -f '{{.Dir}}' | tail -n +2); do (cd $$module; export GOWORK=off; go mod tidy -diff; go vet -tags servers ./...; go run $(staticcheck) -tags servers ./...); done

.PHONY: servers-up
servers-up: ## start Kafka, Redis and a Redis Cluster on 127.0.0.1 (Debian)
	scripts/servers up

.PHONY: servers-down
servers-down: ## stop them and delete their data
	scripts/servers down

.PHONY: mutate
mutate: ## take the guards out one by one; a test must notice each
	$(with_servers) go run ./internal/cmd/mutate $(ARGS)

.PHONY: e2e
e2e: ## the example programs from end to end, compared with kcat and awk
	$(with_servers) scripts/e2e

.PHONY: chaos
chaos: ## kill everything with -9 and compare every count; about 90 seconds
	go run -C bench ./chaos $(or $(ARGS),-short)

.PHONY: bench
bench: ## the table of all contenders; ARGS="-h" for less
	go run -C bench . $(ARGS)

.PHONY: fuzz
fuzz: ## every fuzz target in turn, FUZZTIME=10s each
	@set -e; for file in $$(grep -rl --include='*_test.go' --exclude-dir=bench '^func Fuzz' .); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' "$$file"); do \
			echo "$$target in $$(dirname "$$file")"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x "$$(dirname "$$file")"; \
		done; \
	done

.PHONY: check
check: ## all of this on a fresh Debian, as CI does
	bash .ci/run
