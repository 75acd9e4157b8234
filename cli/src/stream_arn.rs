//! The ARN of a stream, and the forms of a stream's name.

/// The parts of `arn:aws:kinesis:eu-west-1:123456789012:stream/orders`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamArn<'a> {
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> StreamArn<'a> {
    /// Returns the parts; `None` for a name, and for another ARN.
    pub(crate) fn parse(stream: &'a str) -> Option<Self> {
        let parts: Vec<&str> = stream.split(':').collect();
        let ["arn", _, "kinesis", region, account, name] = parts[..] else { return None };
        Some(Self { region, account, name: name.strip_prefix("stream/")? })
    }
}

/// Parses a stream on the command line, so that a name that no stream can have causes no calls.
pub(crate) fn parse_stream(text: &str) -> Result<String, String> {
    // A URL in this place may hold a password, which a message of the parser would show.
    if may_hold_password(text) {
        return Ok(text.to_owned());
    }
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_name = |name: &str| (1..=128).contains(&name.len()) && name.bytes().all(is_part);
    let is_arn = |arn: StreamArn<'_>| {
        let is_account =
            arn.account.len() == 12 && arn.account.bytes().all(|it| it.is_ascii_digit());
        is_name(arn.name) && is_name(arn.region) && is_account
    };
    if is_name(text) || StreamArn::parse(text).is_some_and(is_arn) {
        return Ok(text.to_owned());
    }
    Err("expected a name of 1 to 128 letters, digits, '_', '.' and '-', or an ARN such as \
         arn:aws:kinesis:eu-west-1:123456789012:stream/orders"
        .to_owned())
}

/// Refuses the text that [`parse_stream`] leaves to this check, without showing it.
pub(crate) fn check_stream(text: &str) -> Result<(), String> {
    if may_hold_password(text) {
        return Err("the stream is a URL; expected its name or its ARN".to_owned());
    }
    Ok(())
}

/// Returns true for a URL, and for a part of one with a user.
pub(crate) fn may_hold_password(text: &str) -> bool {
    text.contains("://") || text.contains('@')
}

/// Returns the ARN of a stream that a store names `account:region:name`, or the text as it is.
pub(crate) fn of_store_name(text: &str) -> String {
    let parts: Vec<&str> = text.split(':').collect();
    let [account, region, name] = parts[..] else { return text.to_owned() };
    format!("arn:{}:kinesis:{region}:{account}:stream/{name}", partition(region))
}

/// Returns the partition of a region:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>.
fn partition(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ];
    let found = PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix));
    found.map_or("aws", |(_, partition)| partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arn_has_three_parts() {
        let arn = StreamArn::parse("arn:aws-cn:kinesis:cn-north-1:123456789012:stream/a.b");
        let parts = StreamArn { region: "cn-north-1", account: "123456789012", name: "a.b" };
        assert_eq!(arn, Some(parts));
        assert_eq!(StreamArn::parse("orders"), None);
        assert_eq!(StreamArn::parse("arn:aws:sqs:eu-west-1:123456789012:stream/orders"), None);
    }

    #[test]
    fn stream_of_a_store_has_an_arn_that_commands_accept() {
        for (region, partition) in [
            ("eu-west-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-isob-east-1", "aws-iso-b"),
        ] {
            let arn = of_store_name(&format!("123456789012:{region}:orders"));
            assert_eq!(arn, format!("arn:{partition}:kinesis:{region}:123456789012:stream/orders"));
            assert_eq!(parse_stream(&arn), Ok(arn));
        }
        assert_eq!(of_store_name("orders"), "orders");
    }

    #[test]
    fn url_in_the_place_of_a_stream_is_refused_without_its_text() {
        for text in ["redis://user:sekret@host/", "user:sekret@host"] {
            assert_eq!(parse_stream(text).as_deref(), Ok(text));
            assert!(!check_stream(text).unwrap_err().contains("sekret"));
        }
        assert_eq!(check_stream("orders"), Ok(()));
    }

    #[test]
    fn names_that_no_stream_has_are_refused() {
        for text in ["orders", "a.b-c_D9", "arn:aws:kinesis:eu-west-1:123456789012:stream/orders"] {
            assert_eq!(parse_stream(text).as_deref(), Ok(text));
        }
        let long = "x".repeat(129);
        for text in [
            "",
            "a b",
            "orders/1",
            "日本",
            &long,
            "arn:aws:kinesis:eu-west-1:1:stream/orders",
            "arn:aws:kinesis::123456789012:stream/orders",
            "arn:aws:kinesis:eu-west-1:123456789012:orders",
        ] {
            assert!(parse_stream(text).is_err(), "expected {text:?} to be refused");
        }
    }
}
