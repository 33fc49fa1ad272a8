import com.datastax.oss.driver.api.core.CqlSession;
import com.datastax.oss.driver.api.core.config.DefaultDriverOption;
import com.datastax.oss.driver.api.core.config.DriverConfigLoader;
import com.datastax.oss.driver.api.core.cql.PreparedStatement;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.Reader;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Semaphore;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.streaming.api.functions.sink.RichSinkFunction;
import org.apache.flink.util.Collector;

/** The jobs of the benchmark for Flink: Job (projection|counts) FILE.properties */
public final class Job {
  private static final String USERS =
      "(id, first_name, last_name, gender, address, post_code, email, username, registered_date,"
          + " phone, picture) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
  private static final String VENUES =
      "(venue_id, count, group_city, lat, lon, venue_name) VALUES (?, ?, ?, ?, ?, ?)";
  private static final TypeInformation<Object[]> ROW = TypeInformation.of(Object[].class);

  public static void main(String[] args) throws Exception {
    Properties job = new Properties();
    try (Reader reader = Files.newBufferedReader(Path.of(args[1]))) {
      job.load(reader);
    }
    StreamExecutionEnvironment flink = environment(job);
    DataStream<JsonNode> records = records(flink, job);
    switch (args[0]) {
      case "projection" ->
          records
              .filter(user -> !user.path("gender").isMissingNode())
              .map(Job::row)
              .returns(ROW)
              .addSink(new Sink(job, USERS));
      case "counts" ->
          records
              .map(Job::venue)
              .returns(Venue.class)
              .keyBy(venue -> venue.id, Types.LONG)
              .process(new Count())
              .returns(ROW)
              .addSink(new Sink(job, VENUES));
      default -> throw new IllegalArgumentException(args[0]);
    }
    flink.execute();
  }

  private static StreamExecutionEnvironment environment(Properties job) {
    int cores = Runtime.getRuntime().availableProcessors();
    Configuration settings = new Configuration();
    settings.setString("execution.checkpointing.interval", "1000ms");
    settings.setString("execution.checkpointing.min-pause", "500ms");
    settings.setString(
        "state.checkpoints.dir", Path.of(job.getProperty("folder"), "checkpoint").toUri().toString());
    settings.setString("taskmanager.memory.network.min", "64mb");
    settings.setString("taskmanager.memory.network.max", "64mb");
    settings.setString("taskmanager.numberOfTaskSlots", Integer.toString(cores));
    settings.setString("rest.bind-address", "127.0.0.1");
    settings.setString("pipeline.object-reuse", "true");
    return StreamExecutionEnvironment.createLocalEnvironment(cores, settings);
  }

  private static DataStream<JsonNode> records(StreamExecutionEnvironment flink, Properties job) {
    KafkaSource<byte[]> source =
        KafkaSource.<byte[]>builder()
            .setBootstrapServers(job.getProperty("kafka"))
            .setTopics(job.getProperty("topic"))
            .setGroupId(job.getProperty("group"))
            .setStartingOffsets(OffsetsInitializer.earliest())
            .setValueOnlyDeserializer(
                new AbstractDeserializationSchema<byte[]>() {
                  @Override
                  public byte[] deserialize(byte[] value) {
                    return value;
                  }
                })
            .build();
    ObjectMapper json = new ObjectMapper();
    // What follows is chained to it: nothing between is serialized.
    return flink
        .fromSource(source, WatermarkStrategy.noWatermarks(), "kafka")
        .map(json::readTree)
        .returns(JsonNode.class);
  }

  private static Object[] row(JsonNode user) {
    JsonNode location = user.path("location");
    JsonNode street = location.path("street");
    String address =
        street.path("number").asText() + " " + street.path("name").asText() + ", "
            + location.path("city").asText() + ", " + location.path("state").asText() + ", "
            + location.path("country").asText();
    return new Object[] {
      UUID.fromString(user.path("login").path("uuid").asText()),
      user.path("name").path("first").asText(),
      user.path("name").path("last").asText(),
      user.path("gender").asText(),
      address,
      location.path("postcode").asText(),
      user.path("email").asText(),
      user.path("login").path("username").asText(),
      user.path("registered").path("date").asText(),
      user.path("phone").asText(),
      user.path("picture").path("medium").asText()
    };
  }

  /** A venue as an RSVP tells of it, and the state of its count. */
  public static final class Venue {
    public long id;
    public long count;
    public String city;
    public String lat;
    public String lon;
    public String name;
    /** Whether its row will be written soon. */
    public boolean due;
  }

  private static Venue venue(JsonNode rsvp) {
    Venue venue = new Venue();
    venue.id = rsvp.path("venue").path("venue_id").asLong();
    venue.city = rsvp.path("group").path("group_city").asText();
    venue.lat = rsvp.path("venue").path("lat").asText();
    venue.lon = rsvp.path("venue").path("lon").asText();
    venue.name = rsvp.path("venue").path("venue_name").asText();
    return venue;
  }

  /** Counts, and gives the row of a venue that has changed once in half a second. */
  private static final class Count extends KeyedProcessFunction<Long, Venue, Object[]> {
    private static final long INTERVAL = 500;
    private transient ValueState<Venue> counted;

    @Override
    public void open(OpenContext context) {
      counted = getRuntimeContext().getState(new ValueStateDescriptor<>("venue", Venue.class));
    }

    @Override
    public void processElement(Venue rsvp, Context context, Collector<Object[]> rows)
        throws Exception {
      Venue venue = counted.value();
      if (venue == null) {
        venue = new Venue();
        venue.id = rsvp.id;
      }
      venue.count += 1;
      venue.city = rsvp.city;
      venue.lat = rsvp.lat;
      venue.lon = rsvp.lon;
      venue.name = rsvp.name;
      if (!venue.due) {
        long now = context.timerService().currentProcessingTime();
        context.timerService().registerProcessingTimeTimer(now - now % INTERVAL + INTERVAL);
        venue.due = true;
      }
      counted.update(venue);
    }

    @Override
    public void onTimer(long time, OnTimerContext context, Collector<Object[]> rows)
        throws Exception {
      Venue venue = counted.value();
      venue.due = false;
      counted.update(venue);
      rows.collect(
          new Object[] {venue.id, venue.count, venue.city, venue.lat, venue.lon, venue.name});
    }
  }

  /**
   * In the manner of Flink's Cassandra connector, on the current driver: a bounded number of inserts
   * in flight, all of them awaited at a checkpoint.
   */
  private static final class Sink extends RichSinkFunction<Object[]>
      implements CheckpointedFunction {
    private static final int IN_FLIGHT = 256;
    private final Properties job;
    private final String columns;
    private transient CqlSession session;
    private transient PreparedStatement insert;
    private transient Semaphore free;
    private transient volatile Throwable failed;

    Sink(Properties job, String columns) {
      this.job = job;
      this.columns = columns;
    }

    @Override
    public void open(OpenContext context) {
      int port = Integer.parseInt(job.getProperty("cassandra.port"));
      session =
          CqlSession.builder()
              .addContactPoint(new InetSocketAddress(job.getProperty("cassandra.host"), port))
              .withLocalDatacenter(job.getProperty("cassandra.datacenter"))
              .withAuthCredentials(
                  job.getProperty("cassandra.user"), job.getProperty("cassandra.password"))
              .withConfigLoader(
                  DriverConfigLoader.programmaticBuilder()
                      .withString(DefaultDriverOption.REQUEST_CONSISTENCY, "LOCAL_QUORUM")
                      .build())
              .build();
      String table = job.getProperty("keyspace") + "." + job.getProperty("table");
      insert = session.prepare("INSERT INTO " + table + " " + columns);
      free = new Semaphore(IN_FLIGHT);
    }

    @Override
    public void invoke(Object[] row, Context context) throws Exception {
      check();
      free.acquire();
      session
          .executeAsync(insert.bind(row))
          .whenComplete(
              (written, error) -> {
                if (error != null) {
                  failed = error;
                }
                free.release();
              });
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws Exception {
      free.acquire(IN_FLIGHT);
      free.release(IN_FLIGHT);
      check();
    }

    private void check() {
      if (failed != null) {
        throw new IllegalStateException("Cassandra has not taken a row", failed);
      }
    }

    @Override
    public void initializeState(FunctionInitializationContext context) {}

    @Override
    public void close() {
      if (session != null) {
        session.close();
      }
    }
  }
}
