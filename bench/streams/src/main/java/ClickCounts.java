import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.ReadOnlyWindowStore;
import org.apache.kafka.streams.state.WindowStore;

/**
 * Counts clicks per user and minute, exactly once, into its own state store.
 *
 * <p>Arguments: KAFKA TOPIC GROUP N. The records are keyed by user already, so nothing is shuffled.
 */
public final class ClickCounts {
  @JsonIgnoreProperties(ignoreUnknown = true)
  record Click(@JsonProperty("user_id") String user, @JsonProperty("timestamp") String timestamp) {}

  private static final ObjectReader JSON = new ObjectMapper().readerFor(Click.class);

  public static void main(String[] args) throws Exception {
    String kafka = args[0], topic = args[1], group = args[2];
    long n = Long.parseLong(args[3]);

    Serde<Click> clicks =
        Serdes.serdeFrom(
            (t, click) -> {
              throw new UnsupportedOperationException();
            },
            (t, bytes) -> {
              try {
                return JSON.readValue(bytes);
              } catch (IOException e) {
                throw new UncheckedIOException(e);
              }
            });
    AtomicLong read = new AtomicLong();
    StreamsBuilder builder = new StreamsBuilder();
    builder.stream(
            topic,
            Consumed.with(Serdes.String(), clicks)
                .withTimestampExtractor(
                    (record, partitionTime) -> {
                      if (read.getAndIncrement() == 0) {
                        System.out.println("first");
                      }
                      return Instant.parse(((Click) record.value()).timestamp()).toEpochMilli();
                    }))
        .groupByKey()
        .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofMinutes(1), Duration.ofSeconds(10)))
        .count(
            Materialized.<String, Long, WindowStore<Bytes, byte[]>>as("counts")
                .withRetention(Duration.ofHours(2)));

    Properties config = new Properties();
    config.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
    config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, kafka);
    config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Runtime.getRuntime().availableProcessors());
    config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
    config.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    config.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("streams").toString());

    try (Admin admin = Admin.create(config);
        KafkaStreams streams = new KafkaStreams(builder.build(), config)) {
      streams.setUncaughtExceptionHandler(
          e -> {
            e.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
          });
      streams.start();
      // All are counted when all are committed.
      while (read.get() < n || committed(admin, group) < n) {
        if (streams.state().hasStartedOrFinishedShuttingDown()) {
          System.exit(1);
        }
        Thread.sleep(20);
      }
      System.out.println("done " + n);
      System.in.readAllBytes();

      ReadOnlyWindowStore<String, Long> counts =
          streams.store(
              StoreQueryParameters.fromNameAndType("counts", QueryableStoreTypes.windowStore()));
      StringBuilder out = new StringBuilder();
      try (KeyValueIterator<Windowed<String>, Long> all = counts.all()) {
        while (all.hasNext()) {
          KeyValue<Windowed<String>, Long> c = all.next();
          out.append("count ").append(c.key.key()).append(' ');
          out.append(c.key.window().startTime()).append(' ').append(c.value).append('\n');
        }
      }
      System.out.print(out);
      System.out.flush();
      streams.close();
      streams.cleanUp();
      admin.deleteTopics(List.of(group + "-counts-changelog")).all().get();
    }
  }

  private static long committed(Admin admin, String group) throws Exception {
    return admin
        .listConsumerGroupOffsets(group)
        .partitionsToOffsetAndMetadata()
        .get()
        .values()
        .stream()
        .mapToLong(OffsetAndMetadata::offset)
        .sum();
  }
}
