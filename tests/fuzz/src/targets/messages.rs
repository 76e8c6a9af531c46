//! Messages and configurations in JSON: whatever is accepted must survive being sent on.

use dwcp_control::ownership::Ownership;
use dwcp_control::records::{HostAdd, Migration, Vm, VmCreate, VmSpec};
use dwcp_launch::protocol as launch;
use dwcp_migrate::protocol as mover;
use dwcp_vmm::config::{CMDLINE_BYTES_MAX, MEMORY_BYTES_MIN, VCPUS_MAX, VmConfig};
use dwcp_vmm::protocol as vmm;

use crate::input::read_json;

/// What a VMM is started with.
pub(super) fn vmm_config(input: &[u8]) {
    let Ok(config) = VmConfig::parse(input) else {
        return;
    };
    assert!((1..=VCPUS_MAX).contains(&config.vcpus));
    assert!(config.memory_bytes >= MEMORY_BYTES_MIN);
    if let dwcp_vmm::config::Boot::Fresh { cmdline, .. } = &config.boot {
        assert!(cmdline.len() <= CMDLINE_BYTES_MAX && cmdline.is_ascii());
    }
    assert!(read_json::<VmConfig>(input).is_some());
}

/// What a VMM is asked, and what one says that may be its guest's.
pub(super) fn vmm(input: &[u8]) {
    read_json::<vmm::Request>(input);
    read_json::<vmm::Reply>(input);
}

/// The same of a mover, which may be its peer's.
pub(super) fn mover(input: &[u8]) {
    read_json::<mover::MoverConfig>(input);
    read_json::<mover::Command>(input);
    read_json::<mover::Event>(input);
}

/// What the launcher is asked and answers.
pub(super) fn launcher(input: &[u8]) {
    if let Some(
        launch::Request::SpawnVmm { id, .. }
        | launch::Request::Kill { id }
        | launch::Request::Forget { id },
    ) = read_json(input)
    {
        // It becomes part of a path.
        assert!(!id.as_str().is_empty() && !id.as_str().contains(['/', '.', '\0']));
    }
    read_json::<launch::Reply>(input);
}

/// Records as clients and other hosts send them.
pub(super) fn records(input: &[u8]) {
    read_json::<VmCreate>(input);
    read_json::<VmSpec>(input);
    read_json::<HostAdd>(input);
    read_json::<Vm>(input);
    read_json::<Migration>(input);
    read_json::<Ownership>(input);
}
