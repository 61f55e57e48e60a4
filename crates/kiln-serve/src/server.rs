//! The server: sockets, TLS, limits, and which address leads where.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, header},
    middleware::{self, Next},
    response::IntoResponse as _,
    routing::{any, get},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use kiln_index::Index;
use kiln_io::time::Clock;
use kiln_registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_native_tls::{TlsAcceptor, native_tls};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ServeError,
    access::Scope,
    api, dashboard, files, oci,
    paced::Paced,
    problem::{Inside, Problem},
    renew,
    state::{App, Log},
    tokens::TokensFile,
};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// For the head of a request, and between two requests of a connection.
const HEAD_WITHIN: Duration = Duration::from_secs(20);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// The longest head of a request; a longer one is answered with 431.
const LONGEST_HEAD: usize = 64 << 10;
/// How long downloads that run may take when the server is asked to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How a server is set up.
pub struct Options {
    pub listen: SocketAddr,
    pub registry: Registry,
    /// Where the index of the registry is kept; without it, in memory.
    pub cache: Option<PathBuf>,
    /// Where the tokens are; without it everybody reads and nobody changes anything.
    pub tokens: Option<PathBuf>,
    /// Certificate and key, in PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The directories of builds, whose logs are shown to whoever may read their images.
    pub builds: Option<PathBuf>,
    /// The address that clients use, when it is not the one in their requests.
    pub url: Option<String>,
    pub clock: Arc<dyn Clock>,
    /// Takes a line for the log.
    pub log: Arc<dyn Fn(&str) + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    address: SocketAddr,
    log: Log,
    app: Arc<App>,
    router: Router,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    pub async fn bind(options: Options) -> Result<Self, ServeError> {
        let tokens = TokensFile::open(options.tokens, Arc::clone(&options.clock), Arc::clone(&options.log))?;
        let tls = options.tls.as_ref().map(|(certificate, key)| acceptor(certificate, key)).transpose()?;
        let failed = |source| ServeError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let log = Arc::clone(&options.log);
        let mut app = App::new(
            Index::new(options.registry, options.cache.as_deref()),
            tokens,
            options.clock,
            options.log,
            options.url,
            tls.is_some(),
        );
        app.builds = options.builds;
        let app = Arc::new(app);
        let router = router(Arc::clone(&app));
        Ok(Self { listener, tls, address, log, app, router })
    }

    /// The address it listens on, with the port that was chosen.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; then no request is taken any more, and those that run have a moment to end.
    pub async fn run(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        tasks.spawn(renew::keep_renewed(Arc::clone(&self.app), stop.clone()));
        loop {
            let place = tokio::select! {
                () = stop.cancelled() => break,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let Ok(place) = place else { break };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.app.metrics.connections.fetch_add(1, Ordering::Relaxed);
                    tasks.spawn(self.connection(stream, place, stop.clone()));
                }
                // Too many open files, mostly: those that are open will close.
                Err(error) => {
                    (self.log)(&format!("cannot take a connection: {error}"));
                    self.app.clock.sleep(Duration::from_millis(200)).await;
                }
            }
        }
        drop(self.listener);
        tasks.close();
        let _ = tokio::time::timeout(STOP_WITHIN, tasks.wait()).await;
    }

    fn connection(
        &self,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (tls, router, app) = (self.tls.clone(), self.router.clone(), Arc::clone(&self.app));
        async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            app.metrics.open.fetch_add(1, Ordering::Relaxed);
            match tls {
                None => serve(Paced::new(stream), router, stop).await,
                Some(tls) => {
                    let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await;
                    if let Ok(Ok(stream)) = shaken {
                        serve(Paced::new(stream), router, stop).await;
                    }
                }
            }
            app.metrics.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The requests of one connection.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router, stop: CancellationToken) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(LONGEST_HEAD)
        .max_headers(100)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    // What goes wrong with a connection is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn acceptor(certificate: &PathBuf, key: &PathBuf) -> Result<TlsAcceptor, ServeError> {
    let read = |path: &PathBuf| fs::read(path).map_err(|source| ServeError::Read { path: path.clone(), source });
    let refused = |problem: native_tls::Error| ServeError::Tls {
        certificate: certificate.clone(),
        key: key.clone(),
        problem: problem.to_string(),
    };
    let identity = native_tls::Identity::from_pkcs8(&read(certificate)?, &read(key)?).map_err(refused)?;
    let acceptor = native_tls::TlsAcceptor::builder(identity)
        .min_protocol_version(Some(native_tls::Protocol::Tlsv12))
        .build()
        .map_err(refused)?;
    Ok(acceptor.into())
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/images/{image}/{reference}/{file}", get(files::file))
        .route("/v2", any(oci::root))
        .route("/v2/{*path}", any(oci::answer))
        .route("/v2/", any(oci::root))
        .nest("/api/v1", api::router())
        .merge(dashboard::router())
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async {
            let status = axum::http::StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(status, "method", "this address does not take this method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .with_state(app)
}

/// Counts, logs what went wrong inside, and says what a browser may do with an answer.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let begun = app.clock.monotonic();
    let line = format!("{} {}", request.method(), request.uri().path());
    let mut response = next.run(request).await;
    if let Some(Inside(inside)) = response.extensions().get::<Inside>() {
        (app.log)(&format!("{line}: {inside}"));
    }
    app.metrics.answered(response.status().as_u16(), app.clock.monotonic().saturating_sub(begun));
    let headers = response.headers_mut();
    // Whatever says nothing more exact about itself: lists and records are not for caches that many share, either.
    if headers.get(header::CACHE_CONTROL).is_none_or(|caching| caching == "no-cache") && !app.tokens.public() {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    }
    response
}

/// Whether the registry can be read.
async fn ready(State(app): State<Arc<App>>) -> Response<Body> {
    match app.on_disk(|app| app.index.images()).await {
        Ok(_) => "ready\n".into_response(),
        Err(mut problem) => {
            problem.status = 503;
            problem.into_response()
        }
    }
}

/// Where reading is not public it needs a token, and names only images that this token may read.
async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response<Body>, Problem> {
    let caller = app.tokens.caller(&headers)?;
    caller.require_any()?;
    let (images, mut expiries) = app
        .on_disk(|app| {
            let images = app.index.images()?;
            let expiries = images.iter().filter_map(|image| {
                // A state that is not believed here has no time: it is as good as one that expired at once.
                let expires = app.registry.standing(&image.image).map_or(Some(0), |standing| standing.expires);
                expires.map(|expires| (image.image.clone(), expires))
            });
            let expiries = expiries.collect::<Vec<_>>();
            Ok((images, expiries))
        })
        .await?;
    expiries.retain(|(image, _)| caller.may(Scope::Read, image));
    let versions = images.iter().map(|image| image.versions).sum();
    let streams = crate::state::STREAMS - app.streams.available_permits();
    let text = app.metrics.text(images.len(), versions, streams, &expiries);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
