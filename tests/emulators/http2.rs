//! Enhanced fan-out over HTTP/2, as Kinesis serves it: many subscriptions share a connection, up to
//! the server's limit of concurrent streams.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use axum::serve::Listener;
use futures::StreamExt;
use kinestream::{Consumer, Records, StartingPosition};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::certificates;
use crate::ferrokinesis_server::{config, create_stream, options};

/// The limit of concurrent streams on a connection in hyper's servers.
const MAX_STREAMS: usize = 200;
const SHARDS: usize = MAX_STREAMS + 50;
const PATIENCE: Duration = Duration::from_secs(60);

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Starts a Kinesis emulator in this process that accepts only HTTP/2, and returns a client for it.
async fn start(folder: &Path) -> Client {
    certificates::make(folder);
    let certificate = CertificateDer::from_pem_file(folder.join("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
    let app = ferrokinesis::create_app(options()).0;
    tokio::spawn(axum::serve(listener, app).into_future());

    let authority = std::fs::read(folder.join("authority.crt")).unwrap();
    let trusted = TrustStore::empty().with_pem_certificate(authority);
    let tls = TlsContext::builder().with_trust_store(trusted).build().unwrap();
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https();
    Client::from_conf(config(format!("https://localhost:{port}")).http_client(http).build())
}

/// Puts a record into each shard.
async fn put_one_each(client: &Client, text: &str) {
    let listed = client.list_shards().stream_name("orders").send().await.unwrap();
    assert_eq!(listed.shards().len(), SHARDS);
    for shard in listed.shards() {
        let key = shard.hash_key_range().unwrap().starting_hash_key();
        let put = client.put_record().stream_name("orders").partition_key("any");
        let put = put.explicit_hash_key(key).data(Blob::new(text));
        put.send().await.unwrap();
    }
}

async fn read_one_each(records: &mut Records, text: &str) {
    let mut seen = BTreeSet::new();
    while seen.len() < SHARDS {
        let next = timeout(PATIENCE, records.next()).await;
        let record =
            next.unwrap_or_else(|_| panic!("expected {SHARDS} shards, got {}", seen.len()));
        let record = record.unwrap().unwrap();
        assert_eq!(record.data(), text.as_bytes());
        assert!(seen.insert(record.shard_id().clone()), "expected each record once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_beyond_stream_limit_of_connection_are_read() {
    let folder = std::env::temp_dir().join(format!("kinestream-http2-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let client = start(&folder).await;
    std::fs::remove_dir_all(&folder).unwrap();
    create_stream(&client, "orders", SHARDS.try_into().unwrap()).await.unwrap();
    put_one_each(&client, "before").await;

    let consumer = Consumer::builder(client.clone(), "orders")
        .starting_position(StartingPosition::TrimHorizon)
        .fan_out("billing")
        .build()
        .unwrap();
    let mut records = consumer.records();
    read_one_each(&mut records, "before").await;
    // All shards are subscribed to now. Other calls of the same client must still succeed.
    timeout(PATIENCE, put_one_each(&client, "after")).await.unwrap();
    read_one_each(&mut records, "after").await;
    consumer.close().await.unwrap();
}
