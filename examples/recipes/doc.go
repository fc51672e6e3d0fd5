// Package recipes hands final windows on, each exactly once, to where there is no
// database: to a topic of Kafka, in transactions, and to a webhook, which tells a request
// that comes twice by its key. And it reads across the day on which a hand-written loop of
// INCR gave way to a pipeline. docs/recipes.md and docs/from-incr.md tell the rest; copy
// what you need.
//
// It is a module of its own, for its Kafka client: transactions are what segmentio/kafka-go
// has no producer for.
package recipes
