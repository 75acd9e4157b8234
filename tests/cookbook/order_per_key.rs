include!("../../examples/cookbook/order_per_key.rs");

mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::World;

    #[tokio::test(start_paused = true)]
    async fn last_order_of_each_customer_is_the_newest() {
        let world = World::new(2);
        for number in 0..1000 {
            world.orders.put(&format!("customer-{}", number % 50), number.to_string());
        }
        let (customers, began) = (Customers::default(), Instant::now());
        let reading = run(world.builder(), &customers);
        let done = async {
            let is_last = |(key, order): (&String, &u32)| {
                let customer: u32 = key.trim_start_matches("customer-").parse().unwrap();
                *order == 950 + customer
            };
            loop {
                sleep(Duration::from_millis(10)).await;
                let customers = customers.lock().unwrap();
                if customers.len() == 50 && customers.iter().all(is_last) {
                    return;
                }
            }
        };
        tokio::select! {
            ended = reading => panic!("expected the program to run on: {ended:?}"),
            () = done => {}
        }
        // 20 orders of each customer, 20 ms each, and the first fetches; 20 s one by one.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}
