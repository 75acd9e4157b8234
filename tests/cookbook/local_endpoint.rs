include!("../../examples/cookbook/local_endpoint.rs");

#[path = "../../examples/support/mod.rs"]
mod support;

mod tests {
    use super::*;

    #[tokio::test]
    async fn local_server_is_read_through_its_url() {
        let (admin, port) = support::start_kinesis().await.unwrap();
        support::create_stream(&admin, "orders", 1).await.unwrap();
        support::put_numbers(&admin, "orders", 17..18).await.unwrap();
        let client = client(&format!("http://127.0.0.1:{port}")).await;
        assert_eq!(run(client.clone(), "orders").await.unwrap(), "17");
        // A local server may serve the ARNs of all regions.
        let other = "arn:aws:kinesis:eu-west-1:000000000000:stream/orders";
        Consumer::builder(client, other).build().unwrap();
    }
}
