//! The client of DynamoDB, and the applications of a table.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::scan::ScanOutput;
use aws_sdk_dynamodb::operation::scan::builders::ScanFluentBuilder;
use aws_sdk_dynamodb::types::AttributeValue;

use crate::arguments::{Aws, DynamoDb};
use crate::client::{self, Calls};
use crate::failure::{Failure, Outcome};

/// The items that `reset` leaves out or empties: an application of which only others are left is
/// reset. `kinestream::guide::dynamodb` documents the layout.
const FILTER: &str = "(attribute_exists(#text) AND \
                      (begins_with(#sk, :position) OR begins_with(#sk, :heartbeat) OR #sk = :head)) \
                      OR (begins_with(#sk, :leases) AND size(#leases) > :none)";

/// Creates a client for the region of the table's ARN, or else for that of the stream.
pub(crate) async fn connect(table: &DynamoDb, aws: &Aws, stream: Option<&str>) -> Outcome<Client> {
    let region = table.region().or_else(|| client::region(aws, stream));
    let endpoint = table.endpoint_url.as_deref();
    Ok(Client::new(&client::config(aws, region, endpoint, Calls::Short).await?))
}

/// Returns the partition keys of the applications that have positions, leases or workers, each with the
/// lease table of a KCL that has its positions, if any. Reads the whole table.
pub(crate) async fn applications(
    client: &Client,
    table: &str,
) -> Outcome<BTreeMap<String, Option<String>>> {
    let (mut applications, mut tables) = (BTreeMap::new(), HashMap::new());
    let (mut scanned, mut start) = (0, None);
    loop {
        let page = filtered(client.scan()).set_exclusive_start_key(start.take());
        let page = sent(page, table).await?;
        scanned += page.scanned_count;
        for item in page.items.unwrap_or_default() {
            let text = |name: &str| item.get(name)?.as_s().ok().cloned();
            match (text("pk"), text("sk")) {
                (Some(key), Some(sort)) if sort == "head" => {
                    tables.extend(text("kcl").map(|kcl_table| (key, kcl_table)));
                }
                (Some(key), Some(_)) => drop(applications.insert(key, None)),
                _ => {}
            }
        }
        start = page.last_evaluated_key.filter(|key| !key.is_empty());
        if start.is_none() {
            break;
        }
    }
    if applications.is_empty() && tables.is_empty() && scanned > 0 {
        check_key(client, table).await?;
    }
    for (application, kcl_table) in &mut applications {
        *kcl_table = tables.remove(application);
    }
    Ok(applications)
}

/// Refuses a table whose items have another key.
async fn check_key(client: &Client, table: &str) -> Outcome<()> {
    let page = sent(client.scan().limit(1), table).await?;
    let is_ours =
        |item: &HashMap<String, AttributeValue>| item.contains_key("pk") && item.contains_key("sk");
    if page.items().iter().all(is_ours) {
        return Ok(());
    }
    Err(Failure::other_table(table))
}

fn filtered(scan: ScanFluentBuilder) -> ScanFluentBuilder {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    scan.projection_expression("#pk, #sk, #kcl")
        .filter_expression(FILTER)
        .expression_attribute_names("#pk", "pk")
        .expression_attribute_names("#sk", "sk")
        .expression_attribute_names("#kcl", "kcl")
        .expression_attribute_names("#leases", "leases")
        .expression_attribute_names("#text", "text")
        .expression_attribute_values(":position", text("position:"))
        .expression_attribute_values(":heartbeat", text("heartbeat:"))
        .expression_attribute_values(":leases", text("leases:"))
        .expression_attribute_values(":head", text("head"))
        .expression_attribute_values(":none", AttributeValue::N("0".to_owned()))
}

async fn sent(scan: ScanFluentBuilder, table: &str) -> Outcome<ScanOutput> {
    let scanned = scan.table_name(table).consistent_read(true).send().await;
    scanned.map_err(|error| Failure::of_dynamodb_call("Scan", table, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn region_is_that_of_the_table_or_of_the_stream() {
        let local = Some("http://127.0.0.1:8000".to_owned());
        let stream = Some("arn:aws:kinesis:eu-west-1:123456789012:stream/orders");
        let table = "arn:aws:dynamodb:us-west-2:123456789012:table/kinestream";
        for (table, option, stream, expected) in [
            ("kinestream", None, stream, "eu-west-1"),
            ("kinestream", Some("eu-central-1"), None, "eu-central-1"),
            (table, None, stream, "us-west-2"),
            (table, Some("eu-central-1"), None, "us-west-2"),
        ] {
            let (table, endpoint_url) = (table.to_owned(), local.clone());
            let table = DynamoDb { table, kcl_table: None, endpoint_url };
            let aws = Aws { region: option.map(str::to_owned), ..Aws::default() };
            let client = connect(&table, &aws, stream).await.unwrap();
            let region = client.config().region().map(ToString::to_string);
            assert_eq!(region.as_deref(), Some(expected), "{table:?} {option:?}");
        }
    }
}
