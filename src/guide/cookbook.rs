//! Recipes: complete programs of at most 40 lines, not counting their imports.
//!
//! | task | recipe |
//! |---|---|
//! | a handler with your own error type, `anyhow` or `Box<dyn Error>` | [own error types](#own-error-types) |
//! | retry a failed record, then set it aside | [retry and dead letters](#retry-and-dead-letters), [a table of dead letters](#a-table-of-dead-letters) |
//! | parse records | [typed JSON](#typed-json) |
//! | process many records at once | [order per key](#order-per-key) |
//! | write to a database | [batches into SQLite](#batches-into-sqlite), [exactly once](#exactly-once) |
//! | read less than everything | [one shard](#one-shard), [a day](#backfill-of-a-day) |
//! | stop | [graceful shutdown](#graceful-shutdown), [in Kubernetes](crate::guide::probes#sigterm) |
//! | develop without AWS | [LocalStack](#localstack-and-custom-endpoints), [unit tests](#unit-tests), [integration tests](#integration-tests) |
//! | read a stream of another account | [assumed role](#assumed-role-and-cross-account-arn) |
//! | read several streams | [one memory budget](#one-memory-budget) |
//!
//! Each program is a `main.rs`. The tests of this crate run its functions on the in-memory Kinesis of the cargo
//! feature `testing`, and this page includes the same files. Without a store, checkpoints are lost when the process
//! ends: for a service, add `.store(RedisStore::connect(url).await?)` to the builder.
//!
//! ```sh
//! cargo add anyhow aws-config aws-sdk-kinesis futures kinestream
//! cargo add tokio --features macros,rt-multi-thread,signal
//! # As a recipe needs them:
//! cargo add backon thiserror serde_json
//! cargo add serde --features derive
//! cargo add rusqlite --features bundled
//! cargo add tokio-util
//! cargo add --dev kinestream --features testing
//! cargo add --dev tokio --features test-util
//! ```
//!
//! # Own error types
//!
//! A stream of records fails with [`kinestream::Error`](crate::Error). The adapters of
//! `futures::TryStreamExt` expect the same error from your handler: convert the errors of the stream
//! with `err_into`. It accepts every type with `From<kinestream::Error>`, such as `anyhow::Error`,
//! `Box<dyn Error + Send + Sync>` and an enum of your own:
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/own_errors.rs"), "```")]
//!
//! A handler that fails ends the program, and its record is delivered again after a restart.
//! [`buffer_by_key`](crate::RecordStreamExt::buffer_by_key) converts errors by itself.
//!
//! # Retry and dead letters
//!
//! Retries a record with back-off, by [`backon`](https://docs.rs/backon). A record that still fails is a *poison
//! record*. It goes to a second stream and is acknowledged, so that it neither stops its shard nor is delivered again
//! after a restart. If the second stream fails as well, the program ends, and nothing is lost.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/retry.rs"), "```")]
//!
//! While a record is retried, the later records of its key wait, and those of other keys do not. A record that is
//! retried for 60 s makes the consumer [not ready](crate::guide::probes#results-by-situation).
//!
//! # A table of dead letters
//!
//! Keeps poison records in a table, with their error. The primary key is the identity of the record, so that a
//! redelivery after a crash adds no second row.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/dead_letter_table.rs"), "```")]
//!
//! # Typed JSON
//!
//! [`decode`](crate::RecordStreamExt::decode) yields values that carry their acknowledgement. Its error holds the
//! record that was not decoded, which is appended to a file here.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/typed_json.rs"), "```")]
//!
//! # Order per key
//!
//! [`buffer_by_key`](crate::RecordStreamExt::buffer_by_key) handles 64 records at once, and those of one partition key
//! one after another, in order. The last order of a customer is therefore the newest.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/order_per_key.rs"), "```")]
//!
//! # Batches into SQLite
//!
//! [`batches`](crate::RecordStreamExt::batches) collects records by number and time. The primary key makes the insert
//! idempotent, also for the user records of an aggregated record. A commit blocks the thread for milliseconds; for a
//! slower database, use an asynchronous client or
//! [`block_in_place`](https://docs.rs/tokio/latest/tokio/task/fn.block_in_place.html).
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/batches.rs"), "```")]
//!
//! # Exactly once
//!
//! For effects that are not idempotent, such as a counter, store the position of each shard in the transaction of the
//! results, and start from these positions. A position can lie inside an aggregated record, and children of a split
//! shard start at their first record. The trigger rejects a worker that has lost its lease. The page on delivery
//! [explains each part](crate::guide::delivery#exactly-once).
#![doc = concat!(
    "```no_run\n",
    // A file beside the program, which the test of the page does not find.
    "# macro_rules! include_str { ($_:tt) => { \"\" } }\n",
    include_str!("../../examples/cookbook/exactly_once.rs"),
    "```"
)]
//!
//! `exactly_once.sql`:
#![doc = concat!("```sql\n", include_str!("../../examples/cookbook/exactly_once.sql"), "```")]
//!
//! # One shard
//!
//! [`only_shards`](crate::ConsumerBuilder::only_shards) reads the named shards, with a separate application, so that
//! the positions of the service do not change.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/one_shard.rs"), "```")]
//!
//! # Backfill of a day
//!
//! With an [`ending_position`](crate::ConsumerBuilder::ending_position), the stream ends. With a store, a job that was
//! stopped resumes at its checkpoints.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/backfill.rs"), "```")]
//!
//! # Graceful shutdown
//!
//! Stops between two records, on Ctrl-C or when another part of the program cancels the token. No record is lost
//! or delivered again. For concurrent handlers, see [SIGTERM](crate::guide::probes#sigterm).
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/shutdown.rs"), "```")]
//!
//! # LocalStack and custom endpoints
//!
//! The client decides where calls go. The environment variable `AWS_ENDPOINT_URL_KINESIS` sets its endpoint without a
//! change of the program, or in code:
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/local_endpoint.rs"), "```")]
//!
//! # Assumed role and cross-account ARN
//!
//! A stream of another account is named by its ARN. The role in that account needs the
//! [permissions](crate::guide::permissions), and its trust policy names the account of this program. The client must be
//! one of the region of the ARN: [`build`](crate::ConsumerBuilder::build) fails otherwise.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/assumed_role.rs"), "```")]
//!
//! # One memory budget
//!
//! Consumers of several streams share a [`MemoryBudget`](crate::MemoryBudget). A shared
//! [store](crate::CheckpointStore) keeps their positions apart.
#![doc = concat!("```no_run\n", include_str!("../../examples/cookbook/memory_budget.rs"), "```")]
//!
//! # Unit tests
//!
//! With the cargo feature `testing`, `testing::record` builds a record, and `is_acked` returns whether the handler has
//! acknowledged it.
#![cfg_attr(
    feature = "testing",
    doc = concat!("```no_run\n", include_str!("../../examples/cookbook/unit_tests.rs"), "```")
)]
//!
//! # Integration tests
//!
//! The in-memory Kinesis of the feature `testing` serves the SDK client. With a paused clock, minutes of throttling pass
//! in milliseconds. The page `guide::testing` recommends more tests.
#![cfg_attr(
    feature = "testing",
    doc = concat!("```no_run\n", include_str!("../../examples/cookbook/integration_tests.rs"), "```")
)]
