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
// Decode sees every record of the log from the starting offset on, and of
// transactions those that were committed: in order, none left out, none twice,
// through failures of leaders, brokers and connections. Checksums are verified. A
// record that Decode refuses is reported and counted as rejected. Anything else
// that cannot be read (a corrupt batch, a message format from before Kafka 0.11)
// stops its partition with an error that names topic, partition and offset, until
// it can be read.
//
// A log is identified by the topic's id, and positions carry leader epochs. So
// three kinds of loss are noticed: a topic that was deleted and created again, a
// log that retention has cut off at its beginning, and one that was truncated at
// its end, even if it has grown past the position since. Config's OnRecreated,
// OnGap and OnTruncated decide between a [LostError] and going on.
//
// A compacted topic can be read, but not counted twice with the same result:
// after a loss in the sink the records that compaction removed are missing. The
// log says so at the start.
//
// # Positions
//
// Counting resumes at the checkpoint in the sink, and nowhere else. The group
// shares out partitions. It also gets the counted offsets, every 5 seconds and on
// stop, so that kafka-consumer-groups and dashboards of lag show them. They are
// never read back: resetting them has no effect.
//
// All members of a group must count into the same place. A process that starts
// with another name is refused: see Config.Group.
//
// # Rejected records
//
// Config.OnReject is told of each at least once before reading goes past it, and
// [DeadLetters] writes them to a topic. While that topic is down, the partition
// waits in front of the record.
//
// # Who runs where
//
// One goroutine per broker fetches all partitions of this process that the broker
// leads, and prefetches up to MaxBuffered. The pipeline's goroutine of a partition
// verifies, decompresses and decodes in Fetch, so Decode runs on as many
// processors as there are partitions. Another goroutine refreshes leaders and the
// number of partitions, and one more is the member of the group. All end with Run.
//
// # What it needs
//
// Kafka 2.8 or later, or a server that speaks its protocol with topic ids. If the
// cluster has an authorizer, the user of Config.Transport needs these permissions:
//
//	kafka-acls --bootstrap-server HOST:9092 --add --allow-principal User:counter --operation Read --topic clicks
//	kafka-acls --bootstrap-server HOST:9092 --add --allow-principal User:counter --operation Read --group click-counts
//	kafka-acls --bootstrap-server HOST:9092 --add --allow-principal User:counter --operation DescribeConfigs --topic clicks
//
// Read brings Describe. Without a Group the second is not needed. The third is
// only for the warning about a compacted topic.
package kafka
