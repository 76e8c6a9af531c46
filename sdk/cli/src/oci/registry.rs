//! A registry as a source, by the OCI distribution specification 1.1: manifests, blobs, and who may have them.
//!
//! What always holds: it is spoken to over TLS that the machine's authorities vouch for; plain HTTP is for a registry on
//! this machine alone. A login goes to the registry and to the address that it names for tokens, and to nobody that they
//! redirect to. A transfer that breaks off goes on where it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::checked::Checked;
use super::credentials::{self, Login};
use super::manifest::{Digest, TYPES};
use super::reference::{At, Reference, is_local};

/// Largest manifest, bytes: what every registry takes.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence.
const SILENCE: Duration = Duration::from_secs(60);
/// Most redirections of a request.
const REDIRECTS_MAX: usize = 5;
/// Times that a transfer is begun without coming further.
const ATTEMPTS: u32 = 5;
/// Times that it is begun at all.
const ATTEMPTS_MAX: u32 = 100;
/// Wait before the second attempt; it doubles each time.
const BACK_OFF: Duration = Duration::from_millis(250);

/// One repository of one registry.
#[derive(Debug)]
pub struct Registry {
    http: Client,
    /// For logins: follows nobody.
    tokens: Client,
    base: String,
    /// Why a registry on this machine is not spoken to over TLS.
    untrusted: Option<String>,
    reference: Reference,
    authorization: Option<HeaderValue>,
    /// Where the login is kept that was shown.
    shown: Option<PathBuf>,
}

impl Registry {
    /// The one of a reference.
    pub async fn new(reference: Reference) -> Result<Self> {
        let http = client(reference.is_local(), true)?;
        let tokens = client(reference.is_local(), false)?;
        // Docker's own is known by a name under which it does not answer.
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let secure = format!("https://{host}");
        let mut untrusted = None;
        if reference.is_local() {
            let asked = http.get(format!("{secure}/v2/")).send().await;
            untrusted = asked.err().map(|error| root_cause(&error));
        }
        let base = match untrusted.is_some() {
            true => format!("http://{host}"),
            false => secure,
        };
        Ok(Self {
            http,
            tokens,
            base,
            untrusted,
            reference,
            authorization: None,
            shown: None,
        })
    }

    /// The manifest or index that is meant, with its digest.
    pub async fn named(&mut self) -> Result<(Digest, Vec<u8>)> {
        match self.reference.at.clone() {
            At::Digest(digest) => Ok((digest, self.manifest(digest).await?)),
            At::Tag(tag) => {
                let (told, bytes) = self.fetch_manifest(&tag).await?;
                let found = Digest::of(&bytes);
                check_manifest(told.unwrap_or(found), found)?;
                Ok((found, bytes))
            }
        }
    }

    /// The manifest or index with this digest.
    pub async fn manifest(&mut self, digest: Digest) -> Result<Vec<u8>> {
        let (_, bytes) = self.fetch_manifest(&digest.to_string()).await?;
        check_manifest(digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A manifest that nobody has checked, with the digest that the registry says it has.
    async fn fetch_manifest(&mut self, at: &str) -> Result<(Option<Digest>, Vec<u8>)> {
        let response = self.get(&format!("manifests/{at}"), 0).await?;
        let told = response.headers().get("docker-content-digest");
        let told = told.and_then(|told| told.to_str().ok()?.parse().ok());
        Ok((told, whole(response).await?))
    }

    /// Fetches what is missing of a blob.
    pub async fn blob(&mut self, into: &mut Checked, bar: &ProgressBar) -> Result<()> {
        let (mut attempt, mut furthest) = (0, 0);
        for all in 1.. {
            if into.is_whole() {
                break;
            }
            let Some(broken) = self.more(into, bar).await? else {
                return Ok(());
            };
            attempt = if into.length() > furthest {
                1
            } else {
                attempt + 1
            };
            furthest = furthest.max(into.length());
            if attempt >= ATTEMPTS || all >= ATTEMPTS_MAX {
                return Err(broken);
            }
            tokio::time::sleep(BACK_OFF * 2_u32.pow(attempt)).await;
        }
        Ok(())
    }

    /// Fetches as much of a blob as comes; answers why it broke off, if it did and may go on.
    async fn more(
        &mut self,
        into: &mut Checked,
        bar: &ProgressBar,
    ) -> Result<Option<anyhow::Error>> {
        let path = format!("blobs/{}", into.digest());
        let mut response = match self.get(&path, into.length()).await {
            Ok(response) => response,
            Err(error) if may_pass(&error) => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            into.restart()?; // this registry only knows whole blobs
        }
        loop {
            match response.chunk().await {
                Ok(Some(piece)) => into.write(&piece)?,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error.without_url().into())),
            }
            bar.set_position(into.length());
        }
    }

    /// Asks for something in the repository, from some byte on; as somebody, if that is asked.
    async fn get(&mut self, path: &str, from: u64) -> Result<Response> {
        let url = format!("{}/v2/{}/{path}", self.base, self.reference.repository);
        let mut has_logged_in = false;
        loop {
            let mut request = self.http.get(&url).header(ACCEPT, TYPES.join(", "));
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(reqwest::Error::without_url);
            let response =
                response.with_context(|| format!("{} does not answer", self.reference.registry))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status != StatusCode::UNAUTHORIZED || has_logged_in {
                return Err(self.refused(status, path));
            }
            has_logged_in = true;
            // Whoever it redirects to says nothing of who may have what.
            if Url::parse(&url)?.origin() != response.url().origin() {
                return Err(self.refused(status, path));
            }
            let challenge = Challenge::of(response.headers());
            let challenge = challenge.ok_or_else(|| self.refused(status, path))?;
            self.authorization = Some(self.log_in(&challenge).await?);
        }
    }

    /// What to show the registry.
    async fn log_in(&mut self, challenge: &Challenge) -> Result<HeaderValue> {
        let login = credentials::of(&self.reference)?;
        self.shown = login.as_ref().map(|login| login.file.clone());
        let (realm, service, scope) = match challenge {
            Challenge::Basic => {
                let login = login.with_context(|| self.asks_for_login())?;
                return basic(&login);
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => (realm, service, scope),
        };
        let mut url = Url::parse(realm).context("The address for tokens is none")?;
        let is_good = url.scheme() == "https"
            || self.reference.is_local() && url.host_str().is_some_and(is_local);
        ensure!(
            is_good,
            "Its tokens are had at {realm:?}, which is not https"
        );
        let pulls = format!("repository:{}:pull", self.reference.repository);
        let mut asked = vec![("scope", scope.as_deref().unwrap_or(&pulls))];
        asked.extend(service.as_deref().map(|service| ("service", service)));
        let token = login
            .as_ref()
            .and_then(|login| login.identity_token.as_deref());
        let request = match (token, &login) {
            (Some(token), _) => {
                let mut form = url.clone();
                form.set_query(None);
                asked.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "dwcp"),
                    ("refresh_token", token),
                ]);
                form.query_pairs_mut().extend_pairs(asked);
                let body = form.query().unwrap_or_default().to_owned();
                let request = self.tokens.post(url).body(body);
                request.header("content-type", "application/x-www-form-urlencoded")
            }
            (None, login) => {
                url.query_pairs_mut().extend_pairs(asked);
                let request = self.tokens.get(url);
                match login {
                    Some(login) => request.header(AUTHORIZATION, basic(login)?),
                    None => request,
                }
            }
        };
        let response = request.send().await.map_err(reqwest::Error::without_url);
        let response = response.context("Where its tokens are had, nothing answers")?;
        if !response.status().is_success() {
            bail!(self.asks_for_login());
        }
        token_header(&whole(response).await?)
    }

    fn asks_for_login(&self) -> String {
        let registry = &self.reference.registry;
        let how = format!("`podman login {registry}` or `docker login {registry}`");
        match &self.shown {
            Some(file) => format!(
                "{registry} refuses the login in {}, for this repository at least: log in anew with {how}",
                file.display()
            ),
            None => format!(
                "{registry} asks for a login, or has no such repository: {how} keeps one (what a credential helper keeps is \
                 not seen)"
            ),
        }
    }

    fn refused(&self, status: StatusCode, path: &str) -> anyhow::Error {
        let (registry, repository) = (&self.reference.registry, &self.reference.repository);
        anyhow::Error::msg(match status {
            StatusCode::NOT_FOUND => match path.split_once('/') {
                Some(("manifests", at)) => format!("{registry} has no {at:?} in {repository}"),
                _ => format!("{registry} has lost a layer of it ({path})"),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.asks_for_login(),
            StatusCode::TOO_MANY_REQUESTS => {
                format!(
                    "{registry} was asked too often: wait, or log in, which raises the limit with many"
                )
            }
            other => match &self.untrusted {
                Some(why) => {
                    format!("{registry} answers {other} to plain HTTP, and over TLS it was: {why}")
                }
                None => format!("{registry} answers {other} for {path}"),
            },
        })
    }
}

/// Whether asking again may help: only where nothing was answered.
fn may_pass(error: &anyhow::Error) -> bool {
    let unanswered = error.downcast_ref::<reqwest::Error>();
    unanswered.is_some_and(|error| !error.is_redirect())
}

/// What an error comes down to.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

fn check_manifest(expected: Digest, found: Digest) -> Result<()> {
    ensure!(
        found == expected,
        "Its manifest {expected} was altered: what came has the digest {found}"
    );
    Ok(())
}

fn basic(login: &Login) -> Result<HeaderValue> {
    use base64::Engine as _;
    let text = format!("{}:{}", login.user, login.password);
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    secret(&format!("Basic {text}"))
}

fn token_header(answer: &[u8]) -> Result<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer =
        serde_json::from_slice(answer).context("The answer with a token cannot be read")?;
    match answer.token.or(answer.access_token) {
        Some(token) => secret(&format!("Bearer {token}")),
        None => bail!("The answer with a token has none"),
    }
}

fn secret(text: &str) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::from_str(text).context("A login holds characters that cannot be sent")?;
    value.set_sensitive(true);
    Ok(value)
}

async fn whole(mut response: Response) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(reqwest::Error::without_url)?
    {
        ensure!(
            whole.len() + piece.len() <= MANIFEST_BYTES_MAX,
            "An answer has more than {MANIFEST_BYTES_MAX} bytes, which is the most that is read"
        );
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

/// A client that trusts whom this machine trusts. `to_local` is for a registry on this machine.
fn client(to_local: bool, follows: bool) -> Result<Client> {
    let mut roots = rustls::RootCertStore::empty();
    // Some of a machine's authorities may not be understood; the others count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let redirects = Policy::custom(move |attempt| {
        let is_secure = attempt.url().scheme() == "https";
        if !follows {
            attempt.stop()
        } else if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("it redirects without end")
        } else if is_secure || to_local && attempt.url().host_str().is_some_and(is_local) {
            attempt.follow()
        } else {
            attempt.error("it redirects to plain HTTP")
        }
    });
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("dwcp/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        .redirect(redirects);
    if to_local {
        builder = builder.no_proxy();
    }
    Ok(builder.build()?)
}
