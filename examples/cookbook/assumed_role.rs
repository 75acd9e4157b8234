use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::Consumer;

const ROLE: &str = "arn:aws:iam::222222222222:role/orders-reader";
const STREAM: &str = "arn:aws:kinesis:eu-west-1:222222222222:stream/orders";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The region of the stream, which may differ from that of this program.
    let region = Region::new("eu-west-1");
    let role = AssumeRoleProvider::builder(ROLE)
        .session_name("billing")
        .region(region.clone())
        .build()
        .await;
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .credentials_provider(role)
        .load()
        .await;

    let consumer =
        Consumer::builder(Client::new(&config), STREAM).application("billing").build()?;
    let mut orders = consumer.records();
    while let Some(record) = orders.try_next().await? {
        println!("{:?}", record.data());
    }
    Ok(())
}
