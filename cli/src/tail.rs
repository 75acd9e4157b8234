//! `kinestream tail`: prints records as they arrive.

mod bar;
mod bounds;
mod follow;
mod footer;
mod last;
mod printer;
mod rate;
mod reading;
mod sorted;

use std::io::IsTerminal;

use crate::arguments::{Aws, OutputName, TailArguments};
use crate::client::{self, Calls};
use crate::demo;
use crate::failure::Outcome;
use crate::output::{Format, Paint, RowWriter};
use crate::signals::Stop;

use follow::follow;
use printer::Printer;
use reading::Reading;

pub(crate) async fn run(arguments: &TailArguments, aws: &Aws) -> Outcome<()> {
    let stop = Stop::listen()?;
    let (client, stream) = match &arguments.stream {
        Some(stream) => {
            (client::connect(aws, Some(stream), Calls::Following).await?, stream.clone())
        }
        None => (demo::start(), demo::STREAM.to_owned()),
    };
    let printer = printer(arguments);
    let reading = Reading { client: client.clone(), stream, arguments, aws };
    let outcome = match arguments.last {
        Some(count) => last::print(&reading, count, printer, stop).await,
        None => follow(&reading, printer, stop).await,
    };
    match outcome {
        Err(failure) => Err(client::suggest_names(&client, &reading.stream, failure).await),
        Ok(()) => Ok(()),
    }
}

fn printer(arguments: &TailArguments) -> Printer {
    let is_terminal = std::io::stdout().is_terminal();
    let format = match (&arguments.template, arguments.output) {
        (Some(template), _) => Format::Template(template.clone()),
        (None, Some(OutputName::Json)) => Format::Json,
        (None, Some(OutputName::Hex)) => Format::Hex,
        (None, Some(OutputName::Raw)) => Format::Raw,
        (None, Some(OutputName::Text)) => Format::Text,
        (None, _) if is_terminal => Format::Text,
        (None, _) => Format::Raw,
    };
    let writer = RowWriter::new(format, Paint::stdout(), is_terminal);
    Printer::new(writer, arguments)
}
