//! The name or the ARN of a DynamoDB table.

/// Parses a table on the command line, so that a name that no table can have causes no calls. The
/// message leaves the text out, since it may be a URL with a password.
pub(crate) fn parse(text: &str) -> Result<String, &'static str> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_name = |name: &str| (3..=255).contains(&name.len()) && name.bytes().all(is_part);
    if is_name(text) || arn(text).is_some_and(|(region, name)| !region.is_empty() && is_name(name))
    {
        return Ok(text.to_owned());
    }
    Err("expected a name of 3 to 255 letters, digits, '_', '.' and '-', or an ARN such as \
         arn:aws:dynamodb:eu-west-1:123456789012:table/kinestream")
}

/// Returns the region of an ARN; `None` for a name.
pub(crate) fn region(table: &str) -> Option<&str> {
    arn(table).map(|(region, _name)| region)
}

/// Returns the region and the name of the table.
fn arn(text: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    let ["arn", _, "dynamodb", region, _, table] = parts[..] else { return None };
    Some((region, table.strip_prefix("table/")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_a_name_or_an_arn() {
        let long = "x".repeat(255);
        for text in
            ["abc", "a.b-c_D9", &long, "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/kcl.app"]
        {
            assert_eq!(parse(text).as_deref(), Ok(text));
        }
        let longer = "x".repeat(256);
        for text in [
            "",
            "ab",
            "a b c",
            &longer,
            "redis://user:secret@host/",
            "http://127.0.0.1:8000",
            "arn:aws:dynamodb:eu-west-1:123456789012:leases",
            "arn:aws:dynamodb::123456789012:table/leases",
            "arn:aws:dynamodb:eu-west-1:123456789012:table/a",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/orders",
        ] {
            assert!(parse(text).is_err(), "expected {text:?} to be refused");
        }
    }

    #[test]
    fn region_is_that_of_the_arn() {
        let arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/leases";
        assert_eq!((region(arn), region("leases")), (Some("eu-west-1"), None));
    }
}
