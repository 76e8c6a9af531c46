//! The disk from which cloud-init configures a guest at its first start: the NoCloud data source.
//!
//! What always holds: the same input makes the same bytes; what cloud-init would ignore in silence or misread is an
//! error here, with a sentence that says what to do. The input comes from a request, not from an image, so this runs in
//! the daemon. What it must not know: which VM it is for.
//!
//! The disk is a FAT volume with the label `cidata`, which holds `meta-data`, `user-data` and, if the network is
//! described, `network-config` (cloud-init's documentation, "NoCloud").

mod keys;
mod volume;

use serde_json::Value;

use crate::limits::{NETWORK_BYTES_MAX, SSH_KEYS_MAX, USER_DATA_BYTES_MAX};
pub use keys::SshKeyError;

/// Longest name of a host (RFC 1123), and longest part of one.
const HOSTNAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;
/// Longest name of an instance.
const INSTANCE_BYTES_MAX: usize = 64;

/// What a guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed<'a> {
    /// Names this installation: cloud-init configures the guest anew when it changes. 1 to 64 letters, digits and
    /// `._-`.
    pub instance_id: &'a str,
    /// What the guest calls itself; a name by RFC 1123.
    pub hostname: &'a str,
    /// Lines as in `~/.ssh/id_ed25519.pub`, for the image's own user.
    pub ssh_keys: &'a [String],
    /// `#cloud-config` or a script; none for nothing more than the above.
    pub user_data: Option<&'a str>,
    /// Network configuration, version 1 or 2, in YAML or JSON; none leaves it to the guest, which asks for its address
    /// by DHCP.
    pub network: Option<&'a str>,
}

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The name of the instance.
    #[error(
        "The instance's name must have 1 to {INSTANCE_BYTES_MAX} letters, digits, dots, dashes and underscores"
    )]
    Instance,
    /// The name of the host.
    #[error(
        "The host name must be letters, digits and dashes, in parts of 1 to {LABEL_BYTES_MAX} divided by dots, at most \
         {HOSTNAME_BYTES_MAX} in all, and no part may begin or end with a dash"
    )]
    Hostname,
    /// Too many keys.
    #[error("A guest takes at most {SSH_KEYS_MAX} SSH keys, not {0}")]
    TooManyKeys(usize),
    /// A key.
    #[error("SSH key {number} cannot be used")]
    Key {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        error: SshKeyError,
    },
    /// Too much user data.
    #[error("The user data has {0} bytes; at most {USER_DATA_BYTES_MAX} are taken")]
    UserDataTooLong(usize),
    /// Not what cloud-init understands.
    #[error(
        "The user data must begin with a line '#cloud-config' or, for a script, with '#!' and an interpreter's path; \
         cloud-init would ignore anything else"
    )]
    UserData,
    /// Too long a network configuration.
    #[error("The network configuration has {0} bytes; at most {NETWORK_BYTES_MAX} are taken")]
    NetworkTooLong(usize),
    /// Not a network configuration.
    #[error(
        "The network configuration must be YAML or JSON with 'version: 1' or 'version: 2', by itself or under 'network:'"
    )]
    Network,
    /// A byte that no text has.
    #[error("The {0} contains a zero byte")]
    ZeroByte(&'static str),
}

/// Makes the bytes of the seed's disk, a multiple of 64 KiB.
pub fn make(seed: &Seed<'_>) -> Result<Vec<u8>, SeedError> {
    check(seed)?;
    let meta_data = meta_data(seed);
    let user_data = seed.user_data.unwrap_or("#cloud-config\n{}\n");
    let mut files = vec![
        ("meta-data", meta_data.as_bytes()),
        ("user-data", user_data.as_bytes()),
    ];
    if let Some(network) = seed.network {
        files.push(("network-config", network.as_bytes()));
    }
    Ok(volume::make("cidata", &files))
}

/// Checks a seed without making it.
pub fn check(seed: &Seed<'_>) -> Result<(), SeedError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=INSTANCE_BYTES_MAX).contains(&seed.instance_id.len())
        || !seed.instance_id.bytes().all(is_name)
    {
        return Err(SeedError::Instance);
    }
    if seed.hostname.len() > HOSTNAME_BYTES_MAX || !seed.hostname.split('.').all(is_label) {
        return Err(SeedError::Hostname);
    }
    if seed.ssh_keys.len() > SSH_KEYS_MAX {
        return Err(SeedError::TooManyKeys(seed.ssh_keys.len()));
    }
    for (index, key) in seed.ssh_keys.iter().enumerate() {
        keys::check(key).map_err(|error| SeedError::Key {
            number: index + 1,
            error,
        })?;
    }
    seed.user_data.map_or(Ok(()), check_user_data)?;
    seed.network.map_or(Ok(()), check_network)
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_user_data(text: &str) -> Result<(), SeedError> {
    if text.len() > USER_DATA_BYTES_MAX {
        return Err(SeedError::UserDataTooLong(text.len()));
    }
    let first = text.lines().next().unwrap_or_default();
    let is_script = first
        .strip_prefix("#!")
        .is_some_and(|path| path.trim_start().starts_with('/'));
    if first.trim_end() != "#cloud-config" && !is_script {
        return Err(SeedError::UserData);
    }
    match text.contains('\0') {
        true => Err(SeedError::ZeroByte("user data")),
        false => Ok(()),
    }
}

fn check_network(text: &str) -> Result<(), SeedError> {
    if text.len() > NETWORK_BYTES_MAX {
        return Err(SeedError::NetworkTooLong(text.len()));
    }
    if text.contains('\0') {
        return Err(SeedError::ZeroByte("network configuration"));
    }
    let is_good = match serde_json::from_str::<Value>(text) {
        Ok(json) => {
            let version = json.get("network").unwrap_or(&json).get("version");
            matches!(version.and_then(Value::as_u64), Some(1 | 2))
        }
        // It is for cloud-init to read the YAML; a person who gave the wrong file is told here.
        Err(_) => text.lines().any(is_version),
    };
    is_good.then_some(()).ok_or(SeedError::Network)
}

/// Whether a line of YAML says which version the network configuration has.
fn is_version(line: &str) -> bool {
    let Some(value) = line.trim().strip_prefix("version:") else {
        return false;
    };
    let value = value.split('#').next().unwrap_or_default().trim();
    matches!(value.trim_matches(['"', '\'']), "1" | "2")
}

/// YAML whose strings are written as JSON writes them, which YAML reads.
fn meta_data(seed: &Seed<'_>) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let mut text = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        quoted(seed.instance_id),
        quoted(seed.hostname)
    );
    if !seed.ssh_keys.is_empty() {
        text.push_str("public-keys:\n");
        for key in seed.ssh_keys {
            text.push_str(&format!("  - {}\n", quoted(key.trim())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAFQRgXG0kE9/8uPT0fkz3MX7QAfYrg1E4aCCU7 me@\"home\"";

    fn plain() -> Seed<'static> {
        Seed {
            instance_id: "vm-0192",
            hostname: "web.example",
            ..Seed::default()
        }
    }

    /// What a reader of another make finds on the disk.
    fn read(disk: &[u8]) -> (String, Vec<(String, String)>) {
        let volume =
            fatfs::FileSystem::new(std::io::Cursor::new(disk.to_vec()), fatfs::FsOptions::new())
                .unwrap();
        let mut files = Vec::new();
        for entry in volume.root_dir().iter() {
            let entry = entry.unwrap();
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            files.push((entry.file_name(), text));
        }
        (volume.volume_label(), files)
    }

    #[test]
    fn the_disk_holds_what_cloud_init_looks_for() {
        let keys = [KEY.to_owned(), format!(" {KEY}\n")];
        let seed = Seed {
            ssh_keys: &keys,
            user_data: Some("#cloud-config\npackages: [nginx]\n"),
            network: Some("version: 2\nethernets: {}\n"),
            ..plain()
        };
        let disk = make(&seed).unwrap();
        assert_eq!(disk.len() % (64 << 10), 0);
        assert_eq!(disk, make(&seed).unwrap());
        let (label, files) = read(&disk);
        assert_eq!(label, "cidata");
        let quoted = KEY.replace('"', "\\\"");
        let meta_data = format!(
            "instance-id: \"vm-0192\"\nlocal-hostname: \"web.example\"\npublic-keys:\n  - \"{quoted}\"\n  - \"{quoted}\"\n"
        );
        let expected = [
            ("meta-data".to_owned(), meta_data),
            ("user-data".to_owned(), seed.user_data.unwrap().to_owned()),
            (
                "network-config".to_owned(),
                seed.network.unwrap().to_owned(),
            ),
        ];
        assert_eq!(files, expected);
        let (_, files) = read(&make(&plain()).unwrap());
        assert_eq!(files.len(), 2);
        assert_eq!(files[1].1, "#cloud-config\n{}\n");
    }

    #[test]
    fn names_that_a_guest_cannot_have_are_refused() {
        for hostname in [
            "",
            "-a",
            "a-",
            "a..b",
            "a b",
            "ü",
            "a\nb",
            &"a".repeat(64),
            &"a.".repeat(127),
        ] {
            let seed = Seed {
                hostname,
                ..plain()
            };
            assert!(
                matches!(make(&seed), Err(SeedError::Hostname)),
                "{hostname}"
            );
        }
        for instance_id in ["", "a/b", "a\n", &"a".repeat(65)] {
            let seed = Seed {
                instance_id,
                ..plain()
            };
            assert!(
                matches!(make(&seed), Err(SeedError::Instance)),
                "{instance_id}"
            );
        }
    }

    #[test]
    fn user_data_that_cloud_init_would_ignore_is_refused() {
        for good in [
            "#cloud-config\n",
            "#cloud-config  \nx: 1",
            "#!/bin/sh\ntrue\n",
            "#! /usr/bin/env python3",
        ] {
            assert!(check_user_data(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "packages: []",
            " #cloud-config",
            "#cloud-configs",
            "#!",
            "#!sh",
            "\n#cloud-config",
        ] {
            assert!(
                matches!(check_user_data(bad), Err(SeedError::UserData)),
                "{bad}"
            );
        }
        let long = format!("#cloud-config\n{}", "#".repeat(USER_DATA_BYTES_MAX));
        assert!(matches!(
            check_user_data(&long),
            Err(SeedError::UserDataTooLong(_))
        ));
        assert!(matches!(
            check_user_data("#!/bin/sh\0"),
            Err(SeedError::ZeroByte(_))
        ));
    }

    #[test]
    fn a_network_configuration_says_its_version() {
        for good in [
            "version: 2\n",
            "network:\n  version: 1\n",
            "{\"version\": 2}",
            "{\"network\": {\"version\": 1}}",
            "version: '2' # x",
        ] {
            assert!(check_network(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "version: 3",
            "#cloud-config\n",
            "{\"version\": 3}",
            "[]",
            "aversion: 2",
        ] {
            assert!(
                matches!(check_network(bad), Err(SeedError::Network)),
                "{bad}"
            );
        }
        assert!(matches!(
            check_network(&"x".repeat(NETWORK_BYTES_MAX + 1)),
            Err(SeedError::NetworkTooLong(_))
        ));
    }

    #[test]
    fn the_largest_seed_there_can_be_is_made() {
        let user_data = format!("#cloud-config\n{}", "#".repeat(USER_DATA_BYTES_MAX - 14));
        let keys = vec![KEY.to_owned(); SSH_KEYS_MAX];
        let seed = Seed {
            user_data: Some(&user_data),
            ssh_keys: &keys,
            ..plain()
        };
        let (_, files) = read(&make(&seed).unwrap());
        assert_eq!(files[1].1, user_data);
        let more = vec![KEY.to_owned(); SSH_KEYS_MAX + 1];
        let seed = Seed {
            ssh_keys: &more,
            ..plain()
        };
        assert!(matches!(make(&seed), Err(SeedError::TooManyKeys(65))));
    }

    proptest! {
        #[test]
        fn any_input_is_a_disk_or_an_error(
            instance_id in ".{0,70}", hostname in ".{0,70}", key in ".{0,90}",
            user_data in "(#cloud-config|#!/bin/sh)?(?s).{0,3000}",
        ) {
            let keys = [key];
            let _ = make(&Seed {
                instance_id: &instance_id,
                hostname: &hostname,
                ssh_keys: &keys,
                user_data: Some(&user_data),
                network: None,
            });
            let seed = Seed { user_data: Some(&user_data), ..plain() };
            if let Ok(disk) = make(&seed) {
                prop_assert_eq!(&read(&disk).1[1].1, &user_data);
            }
        }
    }
}
