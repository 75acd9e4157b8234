//! A process that suspends another one, and surely lets it go on.
//!
//! One that is stopped cannot see that its parent is gone, and would stay for ever. So it is stopped
//! by a process that can.

use std::error::Error;
use std::io;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// The pauser's part: suspends a process for so long, or until standard input ends.
pub(crate) fn pause(process: u32, time: Duration) -> Result<(), Box<dyn Error>> {
    let signal = |name: &str| Command::new("kill").args([name, &process.to_string()]).status();
    let (tell, told) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _until_it_ends = io::copy(&mut io::stdin(), &mut io::sink());
        drop(tell);
    });
    let stopped = signal("-STOP");
    if stopped.is_ok() {
        let _time_or_end = told.recv_timeout(time);
    }
    signal("-CONT")?;
    stopped?;
    Ok(())
}
