//! The server process: canned responses over loopback. Its cost is not measured.

use std::io::Write;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::canned::Canned;

/// Prints the port and serves until the process is killed.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        std::io::stdout().flush().unwrap();
        let app = Router::new().fallback(answer).with_state(Canned::default());
        axum::serve(listener, app).await.unwrap();
    });
}

async fn answer(
    State(canned): State<Canned>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let target = headers["x-amz-target"].to_str().unwrap();
    let operation = target.rsplit('.').next().unwrap();
    ([(CONTENT_TYPE, "application/x-amz-json-1.1")], Body::new(canned.answer(operation, &body)))
}
