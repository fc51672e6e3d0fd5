import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Producers of the Java client that do what the lines of the standard input say,
 * one after the other, so that a test can make several of them, and those of
 * other clients, write by turns:
 *
 * <pre>
 * open NAME PROPERTY=VALUE...    a producer, with transactions if it has a transactional.id
 * begin NAME                     a transaction
 * send NAME TOPIC PARTITION PREFIX FROM TO
 *                                the values PREFIX and a number, an hour old, and wait until they are written
 * commit NAME
 * abort NAME
 * close NAME
 * </pre>
 *
 * Each is answered by a line: ok, after send followed by the offset of each
 * record, or error and what went wrong.
 */
public class Writer {
    private static final long HOUR = 3_600_000;

    public static void main(String[] args) throws Exception {
        Map<String, KafkaProducer<String, String>> producers = new HashMap<>();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null;) {
            try {
                System.out.println("ok" + run(producers, line.split(" ")));
            } catch (Exception e) {
                System.out.println("error " + line + ": " + e);
            }
            System.out.flush();
        }
        System.exit(0); // those that are still open are gone as in a crash
    }

    private static String run(Map<String, KafkaProducer<String, String>> producers, String[] words) throws Exception {
        String name = words[1];
        if (words[0].equals("open")) {
            Properties p = new Properties();
            for (int i = 2; i < words.length; i++) {
                String[] pair = words[i].split("=", 2);
                p.setProperty(pair[0], pair[1]);
            }
            p.setProperty("max.block.ms", "30000");
            StringSerializer strings = new StringSerializer();
            KafkaProducer<String, String> producer = new KafkaProducer<>(p, strings, strings);
            producers.put(name, producer);
            if (p.containsKey("transactional.id")) {
                producer.initTransactions();
            }
            return "";
        }
        KafkaProducer<String, String> producer = producers.get(name);
        switch (words[0]) {
            case "begin":
                producer.beginTransaction();
                return "";
            case "send":
                List<Future<RecordMetadata>> all = new ArrayList<>();
                for (int i = Integer.parseInt(words[5]); i < Integer.parseInt(words[6]); i++) {
                    all.add(producer.send(
                            new ProducerRecord<>(words[2], Integer.parseInt(words[3]), System.currentTimeMillis() - HOUR,
                                    i % 3 == 0 ? null : "key", words[4] + i)));
                }
                producer.flush();
                StringBuilder offsets = new StringBuilder();
                for (Future<RecordMetadata> sent : all) {
                    offsets.append(' ').append(sent.get().offset());
                }
                return offsets.toString();
            case "commit":
                producer.commitTransaction();
                return "";
            case "abort":
                producer.abortTransaction();
                return "";
            case "close":
                producer.close();
                return "";
            default:
                throw new IllegalArgumentException("no such command");
        }
    }
}
