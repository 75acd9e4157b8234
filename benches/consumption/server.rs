//! The server process: canned responses over loopback. Its cost is not measured.

use std::io::Write;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

use crate::canned::Canned;
use crate::tls::{Folder, TlsListener};

/// Prints the port and serves until the process is killed. Serves over TLS if there is a folder of
/// certificates.
pub(crate) fn serve(certificates: Option<&Folder>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        std::io::stdout().flush().unwrap();
        let app = Router::new().fallback(answer).with_state(Canned::default());
        match certificates {
            Some(folder) => axum::serve(TlsListener::new(listener, folder), app).await.unwrap(),
            None => axum::serve(listener, app).await.unwrap(),
        }
    });
}

async fn answer(State(canned): State<Canned>, headers: HeaderMap, body: Bytes) -> Response {
    let [target, content_type] =
        ["x-amz-target", "content-type"].map(|name| headers[name].to_str().unwrap());
    let answer = canned.answer(target, content_type, &body);
    ([(CONTENT_TYPE, answer.content_type)], Body::new(answer)).into_response()
}
