//! HTTP as this client needs it: an answer that is no success is an error that keeps its status and its reason.

use async_trait::async_trait;
use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

/// Bytes of an error's text that are read.
const ERROR_BYTES: usize = 16 << 10;

/// Makes clients.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Wire(ReqwestConnector::default().connect(options)?)))
    }
}

/// What a server said instead of doing what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("status {status} {code}")]
pub(super) struct Refusal {
    /// The number in the status line.
    pub(super) status: u16,
    /// S3's name for it, or nothing.
    pub(super) code: String,
}

#[derive(Debug)]
struct Wire(HttpClient);

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let mut text = Vec::new();
        let mut body = response.into_body().bytes_stream();
        // A text that breaks off does not change the status.
        while let Some(Ok(bytes)) = body.next().await
            && text.len() < ERROR_BYTES
        {
            text.extend_from_slice(&bytes);
        }
        Err(HttpError::new(HttpErrorKind::Unknown, Refusal { status, code: code(&text) }))
    }
}

/// The code in the text of an error: `<Error><Code>NoSuchKey</Code>...`.
pub(super) fn code(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map(|(code, _)| code.to_owned()).unwrap_or_default()
}
