"""Prints the rows of a Delta Lake table as other engines read them: a JSON object a line, sorted.

usage: rows.py deltalake TABLE
       rows.py pyspark TABLE JARS
"""

import datetime
import decimal
import glob
import json
import math
import os
import sys
import time

# Spark gives times in the zone of this process.
os.environ["TZ"] = "UTC"
time.tzset()


def plain(value):
    """A value as JSON has it, the same from every engine."""
    if hasattr(value, "asDict"):
        value = value.asDict()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, datetime.datetime):
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
        return value.isoformat(timespec="microseconds")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return value


def by_deltalake(table):
    from deltalake import DeltaTable, QueryBuilder

    query = QueryBuilder().register("rows", DeltaTable(table))
    for batch in query.execute("SELECT * FROM rows"):
        yield from batch.to_struct_array().to_pylist()


def by_pyspark(table, jars):
    from pyspark.sql import SparkSession

    settings = {
        "spark.jars": ",".join(glob.glob(os.path.join(jars, "*.jar"))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        # Few rows and few cores: many small tasks would only take time.
        "spark.sql.shuffle.partitions": "1",
        "spark.databricks.delta.snapshotPartitions": "1",
    }
    builder = SparkSession.builder.master("local[1]").appName("readback")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    yield from spark.read.format("delta").load(table).toLocalIterator()
    spark.stop()


engine, table, *jars = sys.argv[1:]
rows = {"deltalake": by_deltalake, "pyspark": by_pyspark}[engine](os.path.abspath(table), *jars)
for line in sorted(json.dumps(plain(row), sort_keys=True, ensure_ascii=False) for row in rows):
    print(line)
