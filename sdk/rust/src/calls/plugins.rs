//! The marketplace, plugins and templates.

use crate::error::{Error, Result};
use crate::pages::Listing;
use crate::transport::Client;
use crate::types::{MarketplaceItem, Plugin, PluginInstall, Template};

impl Client {
    /// What the marketplace offers.
    pub fn marketplace_list(&self) -> Listing<MarketplaceItem> {
        self.listing(&["v1", "marketplace"], &[])
    }

    /// One artifact of it, by `publisher/name` or `publisher/name@version`.
    pub async fn marketplace_get(&self, reference: &str) -> Result<MarketplaceItem> {
        let (name, version) = match reference.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (reference, None),
        };
        let (publisher, name) = parts(name)?;
        let query = version.map(|version| ("version", version));
        self.get(&["v1", "marketplace", publisher, name], query.as_slice())
            .await
    }

    /// Installed plugins.
    pub fn plugin_list(&self) -> Listing<Plugin> {
        self.listing(&["v1", "plugins"], &[])
    }

    /// One, by `publisher/name`.
    pub async fn plugin_get(&self, name: &str) -> Result<Plugin> {
        let (publisher, name) = parts(name)?;
        self.get(&["v1", "plugins", publisher, name], &[]).await
    }

    /// Installs a plugin or a template.
    pub async fn plugin_install(&self, request: &PluginInstall) -> Result<MarketplaceItem> {
        self.post(&["v1", "plugins"], &[], request).await
    }

    /// Removes a plugin or a template, by `publisher/name`.
    pub async fn plugin_remove(&self, name: &str) -> Result<()> {
        let (publisher, name) = parts(name)?;
        self.delete(&["v1", "plugins", publisher, name], &[]).await
    }

    /// Installed templates.
    pub fn template_list(&self) -> Listing<Template> {
        self.listing(&["v1", "templates"], &[])
    }

    /// One, by `publisher/name`.
    pub async fn template_get(&self, name: &str) -> Result<Template> {
        let (publisher, name) = parts(name)?;
        self.get(&["v1", "templates", publisher, name], &[]).await
    }
}

fn parts(name: &str) -> Result<(&str, &str)> {
    name.split_once('/')
        .filter(|(publisher, name)| !publisher.is_empty() && !name.is_empty())
        .ok_or_else(|| Error::Usage(format!("{name:?} should be written PUBLISHER/NAME")))
}
