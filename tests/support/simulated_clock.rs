//! Consumers by the clock of the in-memory Kinesis.

use aws_sdk_kinesis::Client;
use kinestream::testing::{Kinesis, WallClock};
use kinestream::{Consumer, ConsumerBuilder};

/// Returns the builder of a consumer whose wall clock is that of the in-memory Kinesis. With the clock
/// of the machine, a pause of the process would change the outcome of a simulation.
pub(crate) fn consumer_of(kinesis: &Kinesis, client: Client, stream: &str) -> ConsumerBuilder {
    Consumer::builder(client, stream).wall_clock(&WallClock::at(kinesis.now()))
}
