import static org.apache.spark.sql.functions.*;

import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import org.apache.spark.api.java.function.VoidFunction2;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;

/** The jobs of the benchmark for Spark Structured Streaming: Job (projection|counts) FILE.properties */
public final class Job {
  private static final String USER =
      "gender STRING, name STRUCT<first: STRING, last: STRING>, location STRUCT<street:"
          + " STRUCT<number: INT, name: STRING>, city: STRING, state: STRING, country: STRING,"
          + " postcode: STRING>, email STRING, login STRUCT<uuid: STRING, username: STRING>,"
          + " registered STRUCT<date: STRING>, phone STRING, picture STRUCT<medium: STRING>";
  private static final String RSVP =
      "venue STRUCT<venue_id: BIGINT, venue_name: STRING, lat: STRING, lon: STRING>,"
          + " `group` STRUCT<group_city: STRING>";
  private static final String SINK = "org.apache.spark.sql.cassandra";

  public static void main(String[] args) throws Exception {
    Properties job = new Properties();
    try (Reader reader = Files.newBufferedReader(Path.of(args[1]))) {
      job.load(reader);
    }
    SparkSession spark = session(job);
    spark.sparkContext().setLogLevel("WARN");
    switch (args[0]) {
      case "projection" -> projection(records(spark, job, USER), job);
      case "counts" -> counts(records(spark, job, RSVP), job);
      default -> throw new IllegalArgumentException(args[0]);
    }
    spark.streams().awaitAnyTermination();
  }

  /** Writes in batches by replica set: of what the connector can do, this took the least CPU. */
  private static SparkSession session(Properties job) {
    return SparkSession.builder()
        .master("local[*]")
        .config("spark.ui.enabled", false)
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.local.dir", job.getProperty("folder"))
        .config("spark.sql.warehouse.dir", job.getProperty("folder"))
        .config("spark.sql.shuffle.partitions", 4)
        .config("spark.cassandra.connection.host", job.getProperty("cassandra.host"))
        .config("spark.cassandra.connection.port", job.getProperty("cassandra.port"))
        .config("spark.cassandra.connection.localDC", job.getProperty("cassandra.datacenter"))
        .config("spark.cassandra.auth.username", job.getProperty("cassandra.user"))
        .config("spark.cassandra.auth.password", job.getProperty("cassandra.password"))
        .config("spark.cassandra.output.consistency.level", "LOCAL_QUORUM")
        .config("spark.cassandra.output.concurrent.writes", 64)
        .config("spark.cassandra.output.batch.grouping.key", "replica_set")
        .config("spark.cassandra.output.batch.size.rows", 64)
        .getOrCreate();
  }

  private static Dataset<Row> records(SparkSession spark, Properties job, String schema) {
    return spark
        .readStream()
        .format("kafka")
        .option("kafka.bootstrap.servers", job.getProperty("kafka"))
        .option("subscribe", job.getProperty("topic"))
        .option("startingOffsets", "earliest")
        .load()
        .selectExpr("from_json(CAST(value AS STRING), '" + schema + "') AS record")
        .selectExpr("record.*");
  }

  private static void projection(Dataset<Row> records, Properties job) throws Exception {
    records
        .where("gender IS NOT NULL")
        .selectExpr(
            "login.uuid AS id",
            "name.first AS first_name",
            "name.last AS last_name",
            "gender",
            "concat(location.street.number, ' ', location.street.name, ', ', location.city, ', ',"
                + " location.state, ', ', location.country) AS address",
            "location.postcode AS post_code",
            "email",
            "login.username AS username",
            "registered.date AS registered_date",
            "phone",
            "picture.medium AS picture")
        .writeStream()
        .format(SINK)
        .option("keyspace", job.getProperty("keyspace"))
        .option("table", job.getProperty("table"))
        .option("checkpointLocation", job.getProperty("folder") + "/checkpoint")
        .start();
  }

  private static void counts(Dataset<Row> records, Properties job) throws Exception {
    VoidFunction2<Dataset<Row>, Long> write =
        (rows, batch) ->
            rows.write()
                .format(SINK)
                .option("keyspace", job.getProperty("keyspace"))
                .option("table", job.getProperty("table"))
                .mode("append")
                .save();
    records
        .where("venue.venue_id IS NOT NULL")
        .groupBy(col("venue.venue_id").as("venue_id"))
        .agg(
            count(lit(1)).as("count"),
            last("group.group_city").as("group_city"),
            last("venue.lat").as("lat"),
            last("venue.lon").as("lon"),
            last("venue.venue_name").as("venue_name"))
        .writeStream()
        .outputMode("update")
        .option("checkpointLocation", job.getProperty("folder") + "/checkpoint")
        .foreachBatch(write)
        .start();
  }
}
