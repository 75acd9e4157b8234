//! The calls and tasks that a simulation leaves behind.

use kinestream::testing::Kinesis;
use tokio::runtime::Handle;

/// Describes the calls in flight and the tasks that are alive, if there are any.
pub(crate) fn left_running(kinesis: &Kinesis) -> Option<String> {
    let (calls, tasks) = (kinesis.in_flight(), Handle::current().metrics().num_alive_tasks());
    (calls + tasks > 0).then(|| format!("{calls} calls and {tasks} tasks are left"))
}
