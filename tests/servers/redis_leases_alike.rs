//! Comparison of the scripts of `RedisStore` with `MemoryStore`.

use kinestream::RedisStore;

use crate::leases_alike::assert_alike;
use crate::redis_server::RedisServer;

#[test]
fn scripts_answer_like_the_memory_store() {
    let server = RedisServer::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let store = runtime.block_on(RedisStore::connect(&server.url())).unwrap();
    assert_alike(500, &runtime, &store);
}
