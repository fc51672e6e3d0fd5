// Package kafka reads a topic of Apache Kafka as a [tumble.Source].
//
//	source, err := kafka.New(kafka.Config{
//		Brokers: []string{"localhost:9092"},
//		Topic:   "clicks",
//		Group:   "click-counts",
//		Decode:  kafka.JSON("user_id", "timestamp"),
//	})
//
// # What it guarantees
//
// Every record that is in the log, and committed if it was written in a
// transaction, is handed to Decode from the offset that was asked for on: in
// order, none left out, none twice, whatever leaders, brokers and connections
// do meanwhile. Checksums are verified. A record that Decode refuses is reported
// and counted as rejected; whatever else cannot be read (a corrupt batch, a
// message format from before Kafka 0.11) stops its partition with an error
// that names topic, partition and offset, until it can be read.
//
// The incarnation of the log is the topic's id, so a topic that was deleted and
// created again is noticed, as are a log that retention has cut off at its
// beginning and one that was truncated at its end, even if it has grown past the
// position since: positions carry leader epochs. What then happens is Config's
// OnRecreated, OnGap and OnTruncated.
//
// A compacted topic can be read, but not counted twice with the same result:
// after a loss in the sink the records that compaction removed are missing. The
// log says so at the start.
//
// # Positions
//
// Where counting goes on is what the sink stored, and nothing else. The group
// shares out partitions; it is also told how far counts reach, every 5 seconds
// and on stop, so that kafka-consumer-groups and dashboards of lag show it. These
// offsets are never read back: resetting them has no effect.
//
// All members of a group must count into the same place, which they tell each
// other: see Config.Group. Who starts with another name is refused.
//
// # Rejected records
//
// Config.OnReject is told of each, at least once, before it is passed, and
// [DeadLetters] writes them to a topic. While that is down the partition waits in
// front of the record: nothing is passed that nobody was told of.
//
// # Who runs where
//
// For each broker that leads partitions of this process one goroutine asks for
// all of them together and reads ahead, up to MaxBuffered. A partition's own
// goroutine, the pipeline's, verifies, decompresses and decodes in Fetch, so
// Decode runs on as many processors as there are partitions. Another goroutine
// keeps leaders and the number of partitions fresh, and one is the membership of
// the group. All end with Run.
//
// # What it needs
//
// Kafka 2.8 or later, or what speaks its protocol with topic ids. Where an
// authorizer is at work, the user as whom Config.Transport logs in needs no more
// than
//
//	kafka-acls --bootstrap-server HOST:9092 --add --allow-principal User:counter --operation Read --topic clicks
//	kafka-acls --bootstrap-server HOST:9092 --add --allow-principal User:counter --operation Read --group click-counts
//	kafka-acls --bootstrap-server HOST:9092 --add --allow-principal User:counter --operation DescribeConfigs --topic clicks
//
// of which Read brings Describe. Without a Group the second is not needed. The
// third is for the warning about a compacted topic, which is not given without
// it.
package kafka
