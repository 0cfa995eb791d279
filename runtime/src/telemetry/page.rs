//! The page that Prometheus reads, on a loopback address.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::warn;

/// How many may read at the same time; more wait.
const CONNECTIONS: usize = 16;
/// How long a connection may be used, however slowly it is read.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// The version of the text format.
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What gives the text of the page, afresh for every reader.
pub(super) type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves the page until the future is dropped, and its connections with it.
pub(super) async fn serve(listener: TcpListener, render: Render) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer(stream, Arc::clone(&render));
                connections.spawn(tokio::time::timeout(CONNECTION_TIMEOUT, answer));
            }
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would only spin.
                warn!(%error, "cannot accept a connection to the metrics page");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, render: Render) {
    let service = service_fn(move |request| {
        let response = respond(&request, &render);
        async move { Ok::<_, Infallible>(response) }
    });
    // A reader that goes away, or does not speak HTTP, is its own loss.
    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn respond(request: &Request<Incoming>, render: &Render) -> Response<Full<Bytes>> {
    let (status, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => (StatusCode::OK, render()),
        ("/metrics", _) => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, "the metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
    response
}
