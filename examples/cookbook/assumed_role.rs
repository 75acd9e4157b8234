use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kinesis::{Client, config::Builder};
use futures::TryStreamExt;
use kinestream::{Consumer, ConsumerBuilder};

const ROLE: &str = "arn:aws:iam::222222222222:role/orders-reader";
const STREAM: &str = "arn:aws:kinesis:eu-west-1:222222222222:stream/orders";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    run(Consumer::builder(client(&config).await, STREAM).application("billing")).await
}

/// Returns a client with the permissions of the role.
async fn client(config: &SdkConfig) -> Client {
    // The region of the stream, which may differ from that of this program.
    let region = Region::new("eu-west-1");
    let role = AssumeRoleProvider::builder(ROLE)
        .session_name("billing")
        .region(region.clone())
        .configure(config)
        .build()
        .await;
    Client::from_conf(Builder::from(config).region(region).credentials_provider(role).build())
}

async fn run(builder: ConsumerBuilder) -> anyhow::Result<()> {
    let mut orders = builder.build()?.records();
    while let Some(record) = orders.try_next().await? {
        println!("{:?}", record.data());
    }
    Ok(())
}
