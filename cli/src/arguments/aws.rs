//! The arguments of every command: the AWS account and the endpoint of Kinesis.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::values;
use crate::stream_arn::StreamArn;

/// The AWS account and endpoint.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "AWS options")]
pub(crate) struct Aws {
    /// Uses this profile of the AWS configuration files
    #[arg(long, global = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) profile: Option<String>,
    /// Uses this AWS region, such as eu-west-1
    #[arg(long, global = true, value_name = "NAME", value_parser = values::region)]
    pub(crate) region: Option<String>,
    /// Uses another Kinesis endpoint, such as http://127.0.0.1:4567; a local one needs no credentials
    #[arg(long, global = true, value_name = "URL", value_parser = values::endpoint)]
    pub(crate) endpoint_url: Option<String>,
}

impl Aws {
    /// Refuses a region that is another one than that of the stream's ARN.
    pub(super) fn check_region(&self, stream: &str) -> Result<(), String> {
        let Some((region, arn)) = self.region.as_deref().zip(StreamArn::parse(stream)) else {
            return Ok(());
        };
        // Behind another endpoint, regions may have other names.
        if region == arn.region
            || self.endpoint_url.is_some()
            || endpoint_of_variable("KINESIS").is_some()
        {
            return Ok(());
        }
        let named = arn.region;
        Err(format!(
            "the stream is of region {named}, and --region is {region}; leave out --region, since \
             the ARN names it"
        ))
    }
}

/// Returns the endpoint of this service that a variable of the SDK names.
pub(super) fn endpoint_of_variable(service: &str) -> Option<String> {
    let of_service = format!("AWS_ENDPOINT_URL_{service}");
    let url = [&*of_service, "AWS_ENDPOINT_URL"].into_iter().find_map(std::env::var_os)?;
    Some(url.to_string_lossy().into_owned())
}
