import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.nio.file.Files;
import java.time.Duration;
import java.time.Instant;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.core.execution.CheckpointingMode;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;

/**
 * Counts clicks per user and minute, exactly once, with state on the heap.
 *
 * <p>Arguments: KAFKA TOPIC GROUP N. All runs in this process; what a sink would write is kept in
 * memory.
 */
public final class ClickCounts {
  private static final AtomicBoolean BEGUN = new AtomicBoolean();
  private static final Queue<Count> COUNTS = new ConcurrentLinkedQueue<>();

  /** Fields are public, and the constructor too, so that Flink has its own fast serializer. */
  public static final class Click {
    public String user;
    public long at;
  }

  @JsonIgnoreProperties(ignoreUnknown = true)
  record Document(@JsonProperty("user_id") String user, @JsonProperty("timestamp") String at) {}

  record Count(String user, long start, long n) {}

  static final class Decode extends AbstractDeserializationSchema<Click> {
    private static final ObjectReader JSON = new ObjectMapper().readerFor(Document.class);

    Decode() {
      super(Click.class);
    }

    @Override
    public Click deserialize(byte[] message) throws IOException {
      if (!BEGUN.get() && BEGUN.compareAndSet(false, true)) {
        System.out.println("first");
      }
      Document d = JSON.readValue(message);
      Click c = new Click();
      c.user = d.user();
      c.at = Instant.parse(d.at()).toEpochMilli();
      return c;
    }
  }

  static final class Sum implements AggregateFunction<Click, Long, Long> {
    @Override
    public Long createAccumulator() {
      return 0L;
    }

    @Override
    public Long add(Click click, Long sum) {
      return sum + 1;
    }

    @Override
    public Long getResult(Long sum) {
      return sum;
    }

    @Override
    public Long merge(Long a, Long b) {
      return a + b;
    }
  }

  static final class Emit extends ProcessWindowFunction<Long, Long, String, TimeWindow> {
    @Override
    public void process(String user, Context context, Iterable<Long> sums, Collector<Long> out) {
      long n = sums.iterator().next();
      COUNTS.add(new Count(user, context.window().getStart(), n));
      out.collect(n);
    }
  }

  public static void main(String[] args) throws Exception {
    Configuration config = new Configuration();
    config.set(PipelineOptions.OBJECT_REUSE, true);
    config.set(
        CheckpointingOptions.CHECKPOINTS_DIRECTORY,
        Files.createTempDirectory("flink").toUri().toString());
    StreamExecutionEnvironment env =
        StreamExecutionEnvironment.createLocalEnvironment(
            Runtime.getRuntime().availableProcessors(), config);
    env.enableCheckpointing(1000, CheckpointingMode.EXACTLY_ONCE);

    KafkaSource<Click> source =
        KafkaSource.<Click>builder()
            .setBootstrapServers(args[0])
            .setTopics(args[1])
            .setGroupId(args[2])
            .setStartingOffsets(OffsetsInitializer.earliest())
            .setBounded(OffsetsInitializer.latest())
            .setValueOnlyDeserializer(new Decode())
            .build();
    WatermarkStrategy<Click> time =
        WatermarkStrategy.<Click>forBoundedOutOfOrderness(Duration.ofSeconds(10))
            .withTimestampAssigner((click, timestamp) -> click.at);
    env.fromSource(source, time, "clicks")
        .keyBy(click -> click.user)
        .window(TumblingEventTimeWindows.of(Duration.ofMinutes(1)))
        .aggregate(new Sum(), new Emit())
        .sinkTo(new DiscardingSink<>());
    env.execute();

    System.out.println("done " + COUNTS.stream().mapToLong(Count::n).sum());
    System.in.readAllBytes();
    StringBuilder out = new StringBuilder();
    for (Count c : COUNTS) {
      out.append("count ").append(c.user()).append(' ');
      out.append(Instant.ofEpochMilli(c.start())).append(' ').append(c.n()).append('\n');
    }
    System.out.print(out);
    System.out.flush();
    System.exit(0);
  }
}
