//! The marketplace and what is installed from it: signature against trusted keys, digest pinned, capabilities granted by
//! name; then compiled once, kept, and used.

use dwcp_api::Fault;
use dwcp_api::service::{Answer, Page, PageRequest};
use dwcp_control::records::{Image, MarketplaceItem, Plugin, PluginInstall, Template};
use dwcp_marketplace::{Artifact, Kind, Layer, Layout, Reference, SignedBy, TrustedKey, media};

use crate::errors::{chain, conflict, impossible, internal, invalid, record};
use crate::node::Node;
use crate::state::now_ms;

impl Node {
    fn layout(&self) -> Answer<Layout> {
        let Some(dir) = &self.config.marketplace else {
            return Err(impossible(
                "No marketplace is configured: set `marketplace.layout` in the configuration to an OCI image layout directory",
            ));
        };
        Layout::open(dir.clone()).map_err(|error| impossible(chain(&error)))
    }

    fn trusted(&self) -> Answer<Vec<TrustedKey>> {
        self.config
            .trusted_keys
            .iter()
            .map(|key| TrustedKey::from_pem(&key.name, &key.pem).map_err(|e| impossible(chain(&e))))
            .collect()
    }

    /// What the marketplace holds, a page of it.
    pub(crate) async fn market_list(&self, request: PageRequest) -> Answer<Page<MarketplaceItem>> {
        let mut references = self
            .layout()?
            .list()
            .map_err(|error| impossible(chain(&error)))?;
        references.sort_by_key(ToString::to_string);
        let after = request.cursor.unwrap_or_default();
        let mut wanted = references
            .iter()
            .map(ToString::to_string)
            .filter(|reference| *reference > after);
        let names: Vec<String> = wanted.by_ref().take(request.limit).collect();
        let more = wanted.next().is_some();
        let mut items = Vec::new();
        for name in &names {
            items.push(self.market_get(name).await?);
        }
        Ok(Page {
            items,
            next_cursor: names.last().cloned().filter(|_| more),
        })
    }

    /// One artifact as it would be installed.
    pub(crate) async fn market_get(&self, reference: &str) -> Answer<MarketplaceItem> {
        let (_, artifact, signed) = self.resolve(reference)?;
        self.item(&artifact, &signed).await
    }

    #[allow(clippy::type_complexity)]
    fn resolve(&self, reference: &str) -> Answer<(Layout, Artifact, Result<SignedBy, String>)> {
        let asked: Reference = reference
            .parse()
            .map_err(|error: dwcp_marketplace::ReferenceError| invalid(chain(&error)))?;
        let layout = self.layout()?;
        let artifact = layout.resolve(&asked).map_err(|error| match error {
            dwcp_marketplace::LayoutError::NotFound(_) => {
                Fault::not_found(format!("{asked} in the marketplace"))
            }
            other => impossible(chain(&other)),
        })?;
        let signed = layout
            .verify(&artifact, &self.trusted()?)
            .map_err(|error| chain(&error));
        Ok((layout, artifact, signed))
    }

    async fn item(
        &self,
        artifact: &Artifact,
        signed: &Result<SignedBy, String>,
    ) -> Answer<MarketplaceItem> {
        let name = artifact.reference.repository();
        let installed = self.records.plugins.get(&name).await.map_err(record)?;
        let template = self.records.templates.get(&name).await.map_err(record)?;
        let has = installed
            .as_ref()
            .map_or(Vec::new(), |p| p.value.capabilities.clone());
        let principal = artifact.principal_layer().map(|l| l.digest.to_hex());
        let same = |digest: &str| principal.as_deref() == Some(digest);
        let capabilities = artifact.capabilities().to_vec();
        Ok(MarketplaceItem {
            reference: artifact.reference.to_string(),
            digest: artifact.digest.to_hex(),
            kind: match artifact.kind {
                Kind::Plugin { .. } => "plugin".into(),
                Kind::Template { .. } => "template".into(),
            },
            world: artifact.world().unwrap_or_default().to_owned(),
            description: artifact.summary.clone(),
            signed_by: signed
                .as_ref()
                .ok()
                .map(|by| format!("{} (SHA-256 {})", by.key_name, by.fingerprint.to_hex())),
            signature_problem: signed.as_ref().err().cloned(),
            new_capabilities: capabilities
                .iter()
                .filter(|c| !has.contains(c))
                .cloned()
                .collect(),
            capabilities,
            installed: installed.is_some_and(|p| same(&p.value.digest))
                || template.is_some_and(|t| same(&t.value.digest)),
        })
    }

    /// Installs an artifact and uses it.
    pub(crate) async fn install(&self, request: &PluginInstall) -> Answer<MarketplaceItem> {
        let (layout, artifact, signed) = self.resolve(&request.reference)?;
        let by = match &signed {
            Ok(by) => by.key_name.clone(),
            Err(why) => {
                return Err(impossible(format!(
                    "{} is not installed: {why}. Trust its publisher's key by `plugins.trusted_keys` in the configuration, if you do",
                    artifact.reference
                )));
            }
        };
        let digest = artifact.digest.to_hex();
        if let Some(pinned) = request.digest.as_ref().filter(|d| **d != digest) {
            return Err(conflict(format!(
                "{} has the digest {digest} now, not {pinned}: look at it again",
                artifact.reference
            )));
        }
        let missing: Vec<String> = artifact
            .capabilities()
            .iter()
            .filter(|wanted| !request.grant.contains(wanted))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(Fault {
                reasons: missing,
                ..impossible(format!(
                    "{} asks for capabilities that were not granted",
                    artifact.reference
                ))
            });
        }
        match &artifact.kind {
            Kind::Plugin { .. } => self.install_plugin(&layout, &artifact, by).await?,
            Kind::Template { expander } => {
                self.install_template(&layout, &artifact, expander, by)
                    .await?;
            }
        }
        self.item(&artifact, &signed).await
    }

    async fn install_plugin(&self, layout: &Layout, artifact: &Artifact, by: String) -> Answer<()> {
        let wasm = self
            .layer(layout, artifact, artifact.principal_layer())
            .await?;
        let compiled = self.decider.compile(wasm.clone()).await?;
        let manifest = compiled.manifest();
        if manifest.address() != artifact.reference.to_string() {
            return Err(impossible(format!(
                "{} calls itself {}: the artifact and the component do not belong together",
                artifact.reference,
                manifest.address()
            )));
        }
        if compiled.imports() != artifact.capabilities() {
            return Err(impossible(format!(
                "{} imports {:?} and declares {:?}: the artifact does not tell the truth",
                artifact.reference,
                compiled.imports(),
                artifact.capabilities()
            )));
        }
        let digest = compiled.digest().to_owned();
        let path = self.decider.path(&digest);
        tokio::task::spawn_blocking(move || crate::identity::write_private(&path, &wasm))
            .await
            .map_err(internal)?
            .map_err(internal)?;
        let name = artifact.reference.repository();
        self.decider.activate(&digest).await?;
        let all = self.records.all(&self.records.plugins).await;
        for mut other in all.map_err(record)? {
            // One placement plugin and one policy engine decide at a time; template expanders stand side by side.
            let same_seat =
                other.value.world == manifest.world && !manifest.world.contains("template");
            if same_seat && other.id != name && other.value.active {
                other.value.active = false;
                let kept = self.records.plugins.put(&other.id, &other.value).await;
                kept.map_err(record)?;
            }
        }
        let plugin = Plugin {
            name: name.clone(),
            version: manifest.version.clone(),
            world: manifest.world.clone(),
            digest,
            signed_by: by,
            capabilities: artifact.capabilities().to_vec(),
            active: true,
            installed_ms: now_ms(),
            calls: 0,
            faults: 0,
        };
        let kept = self.records.plugins.put(&name, &plugin).await;
        kept.map_err(record)?;
        if manifest.world.contains("policy") {
            self.policies.engine_changed(self).await?;
        }
        Ok(())
    }

    async fn install_template(
        &self,
        layout: &Layout,
        artifact: &Artifact,
        expander: &Reference,
        by: String,
    ) -> Answer<()> {
        let principal = artifact.principal_layer();
        let document = self.layer(layout, artifact, principal).await?;
        let document = String::from_utf8(document)
            .map_err(|_| impossible("The template's document is not UTF-8"))?;
        let mut images = [None, None];
        for (slot, kind) in images.iter_mut().zip([media::KERNEL, media::INITRD]) {
            if let Some(layer) = artifact.layers.iter().find(|l| l.media_type == kind) {
                let content = self.layer(layout, artifact, Some(layer)).await?;
                let label = format!("{} {}", artifact.reference, layer.title);
                let image = self.store_image(&label, content).await?;
                *slot = Some(image.digest);
            }
        }
        let [kernel, initrd] = images;
        let name = artifact.reference.repository();
        let template = Template {
            name: name.clone(),
            version: artifact
                .reference
                .version()
                .map_or(String::new(), ToString::to_string),
            description: artifact.summary.clone(),
            plugin: expander.repository(),
            digest: principal.map_or(String::new(), |l| l.digest.to_hex()),
            signed_by: by,
            kernel,
            initrd,
            document,
            media_type: principal.map_or(String::new(), |l| l.media_type.clone()),
            installed_ms: now_ms(),
        };
        let kept = self.records.templates.put(&name, &template).await;
        kept.map(drop).map_err(record)
    }

    async fn layer(
        &self,
        layout: &Layout,
        artifact: &Artifact,
        layer: Option<&Layer>,
    ) -> Answer<Vec<u8>> {
        let Some(layer) = layer.cloned() else {
            return Err(impossible(format!("{} holds nothing", artifact.reference)));
        };
        let layout = layout.clone();
        tokio::task::spawn_blocking(move || layout.read(&layer))
            .await
            .map_err(internal)?
            .map_err(|error| impossible(chain(&error)))
    }

    async fn store_image(&self, label: &str, content: Vec<u8>) -> Answer<Image> {
        let content = futures::stream::once(async { Ok(bytes::Bytes::from(content)) });
        let image = self.images.put(label, None, Box::pin(content)).await?;
        self.record_image(&image).await?;
        Ok(image)
    }

    /// Removes a plugin or a template.
    pub(crate) async fn uninstall(&self, name: &str) -> Answer<()> {
        if let Some(found) = self.records.plugins.get(name).await.map_err(record)? {
            let templates = self.records.all(&self.records.templates).await;
            let templates = templates.map_err(record)?;
            if let Some(user) = templates.iter().find(|t| t.value.plugin == name) {
                return Err(conflict(format!(
                    "Template {} needs plugin {name}: remove it first",
                    user.value.name
                )));
            }
            let policies = self.records.all(&self.records.policies).await;
            if found.value.world.contains("policy") && !policies.map_err(record)?.is_empty() {
                return Err(conflict(format!(
                    "Policies need plugin {name}: without it they would deny everything; remove them first"
                )));
            }
            self.records.plugins.delete(name).await.map_err(record)?;
            self.decider.deactivate(name, &found.value.digest);
            let _ = tokio::fs::remove_file(self.decider.path(&found.value.digest)).await;
            if found.value.world.contains("policy") {
                self.policies.engine_changed(self).await?;
            }
            return Ok(());
        }
        if self.records.templates.delete(name).await.map_err(record)? {
            return Ok(());
        }
        Err(Fault::not_found(format!("plugin or template {name}")))
    }
}
