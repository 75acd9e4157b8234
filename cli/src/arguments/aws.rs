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
        if region == arn.region || self.endpoint_url.is_some() || is_endpoint_set("KINESIS") {
            return Ok(());
        }
        let named = arn.region;
        Err(format!(
            "the stream is of region {named}, and --region is {region}; leave out --region, since \
             the ARN names it"
        ))
    }
}

/// Returns true if a variable of the SDK names the endpoint of this service.
pub(super) fn is_endpoint_set(service: &str) -> bool {
    let of_service = format!("AWS_ENDPOINT_URL_{service}");
    [&*of_service, "AWS_ENDPOINT_URL"].into_iter().any(|name| std::env::var_os(name).is_some())
}
