//! The connection, and the three services of the protocol on it.
//!
//! The client of the crate `qdrant-client` is not used, only the protocol that it is generated from. On any failure it
//! sends the request again by itself, on a new connection, and tells of the second failure alone: of a server that
//! dies after a write arrived, it tells that nobody listens. Here a request is sent once, so that an error says
//! whether it was sent.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use qdrant_client::qdrant::collections_client::CollectionsClient;
use qdrant_client::qdrant::points_client::PointsClient;
use qdrant_client::qdrant::qdrant_client::QdrantClient;
use seawall_actors::backend::BackendError;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::settings::QdrantConfig;

/// How often a connection is tried that says nothing, and how long it may take to answer: a peer that is gone without
/// a word is found out while no call waits for it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

type Service = InterceptedService<Channel, Authorization>;

/// A connection to one server, made when it is first used and again after it broke.
pub(super) struct Client {
    endpoint: Endpoint,
    channel: OnceLock<Channel>,
    authorization: Authorization,
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// Permanent, when the settings name no server.
    pub(super) fn new(config: &QdrantConfig) -> Result<Self, BackendError> {
        let mut endpoint = Endpoint::from_shared(config.url.clone())
            .map_err(|_| unusable("`url` is no URL".to_owned()))?
            .connect_timeout(config.connect_timeout)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        if config.is_encrypted() {
            let (tls, missing) = match &config.tls_ca_file {
                Some(file) => {
                    let pem =
                        fs::read(file).map_err(|error| unusable(format!("`tls_ca_file` cannot be read: {error}")))?;
                    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                    (tls, "`tls_ca_file` is no certificate in PEM")
                }
                None => (ClientTlsConfig::new().with_native_roots(), "the system trusts nobody; set `tls_ca_file`"),
            };
            endpoint = endpoint.tls_config(tls).map_err(|_| unusable(missing.to_owned()))?;
        }
        let key = config.api_key.as_ref().map(|key| key.reveal().parse::<MetadataValue<Ascii>>());
        let mut key = key.transpose().map_err(|_| unusable("`api_key` is no key".to_owned()))?;
        if let Some(key) = &mut key {
            key.set_sensitive(true);
        }
        Ok(Self { endpoint, channel: OnceLock::new(), authorization: Authorization(key) })
    }

    pub(super) fn points(&self) -> PointsClient<Service> {
        PointsClient::new(self.service()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn collections(&self) -> CollectionsClient<Service> {
        CollectionsClient::new(self.service())
    }

    pub(super) fn server(&self) -> QdrantClient<Service> {
        QdrantClient::new(self.service())
    }

    fn service(&self) -> Service {
        let channel = self.channel.get_or_init(|| self.endpoint.connect_lazy());
        InterceptedService::new(channel.clone(), self.authorization.clone())
    }
}

fn unusable(why: String) -> BackendError {
    BackendError::permanent(why).with_code("settings")
}

/// Shows the key with every request.
#[derive(Clone)]
pub(super) struct Authorization(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("api-key", key.clone());
        }
        Ok(request)
    }
}
