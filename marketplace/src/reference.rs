//! Names of artifacts: `publisher/name[@version]`.
//!
//! What always holds: publisher and name are 1 to 64 bytes of `[a-z0-9-]` that begin with a letter; the version
//! is a semantic version without build metadata, so that it is also an OCI tag. No part can leave a directory.

use std::fmt;
use std::str::FromStr;

use semver::Version;

/// `publisher/name@version`, or without a version: the newest release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    publisher: String,
    name: String,
    version: Option<Version>,
}

/// Text that is no reference.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// No slash between publisher and name.
    #[error("`{0}` has no publisher; write `publisher/name` or `publisher/name@version`")]
    NoPublisher(String),
    /// A part uses other letters, or is too long or empty.
    #[error(
        "`{0}` is not a publisher or name; use 1 to 64 lower-case letters, digits and hyphens, beginning with a letter"
    )]
    BadPart(String),
    /// Not a semantic version.
    #[error("`{text}` is not a version; write it like `1.2.3` or `1.2.3-beta.1`")]
    BadVersion {
        /// What was given.
        text: String,
        /// What the parser says.
        #[source]
        source: semver::Error,
    },
    /// Build metadata cannot be an OCI tag.
    #[error("`{0}` carries build metadata, which an OCI tag cannot; leave out the part from `+`")]
    BuildMetadata(String),
    /// Longer than a tag may be.
    #[error("The version is {0} bytes long; at most 64 are taken")]
    LongVersion(usize),
}

const MAX_BYTES: usize = 64;

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn part(text: &str) -> Result<String, ReferenceError> {
    let good = (1..=MAX_BYTES).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if good {
        Ok(text.to_owned())
    } else {
        Err(ReferenceError::BadPart(shown(text)))
    }
}

fn version(text: &str) -> Result<Version, ReferenceError> {
    if text.len() > MAX_BYTES {
        return Err(ReferenceError::LongVersion(text.len()));
    }
    let version = Version::parse(text).map_err(|source| ReferenceError::BadVersion {
        text: shown(text),
        source,
    })?;
    if version.build.is_empty() {
        Ok(version)
    } else {
        Err(ReferenceError::BuildMetadata(shown(text)))
    }
}

impl Reference {
    /// A reference to one version.
    ///
    /// # Errors
    /// When a part does not have the form that the module states.
    pub fn new(publisher: &str, name: &str, version_text: &str) -> Result<Self, ReferenceError> {
        Ok(Self {
            publisher: part(publisher)?,
            name: part(name)?,
            version: Some(version(version_text)?),
        })
    }

    /// Who made it.
    pub fn publisher(&self) -> &str {
        &self.publisher
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version asked for; none means the newest release.
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// `publisher/name`: what OCI calls the repository.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.publisher, self.name)
    }

    /// Whether `other` is what this one asks for, any version when it names none.
    pub fn accepts(&self, other: &Reference) -> bool {
        self.publisher == other.publisher
            && self.name == other.name
            && (self.version.is_none() || self.version == other.version)
    }

    /// The tag under which an index keeps it; none without a version.
    pub(crate) fn tag(&self) -> Option<String> {
        let version = self.version.as_ref()?;
        Some(format!("{}:{version}", self.repository()))
    }

    /// Reads back what [`Reference::tag`] wrote. Anything else in an index is not ours.
    pub(crate) fn from_tag(tag: &str) -> Option<Self> {
        let (repository, version) = tag.split_once(':')?;
        let (publisher, name) = repository.split_once('/')?;
        Self::new(publisher, name, version).ok()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (path, version_text) = match text.split_once('@') {
            Some((path, version)) => (path, Some(version)),
            None => (text, None),
        };
        let (publisher, name) = path
            .split_once('/')
            .ok_or_else(|| ReferenceError::NoPublisher(shown(text)))?;
        Ok(Self {
            publisher: part(publisher)?,
            name: part(name)?,
            version: version_text.map(version).transpose()?,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.publisher, self.name)?;
        match &self.version {
            Some(version) => write!(f, "@{version}"),
            None => Ok(()),
        }
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
