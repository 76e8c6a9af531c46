//! What machines are told of their CPU, and what a host can tell them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a machine is told of its CPU: a baseline hides what not every host of a fleet has, so that the machine can go to
/// each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CpuBaseline {
    /// Whatever the host offers.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The x86-64 psABI's baseline.
    #[serde(rename = "x86-64")]
    V1,
    /// Its second level: SSE 4.2.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// Its third level: AVX2.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// Its fourth level: AVX-512.
    #[serde(rename = "x86-64-v4")]
    V4,
}

impl CpuBaseline {
    /// Whether it is whatever the host offers.
    pub fn is_host(&self) -> bool {
        *self == Self::Host
    }
}

/// A host's CPU as its machines find it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostCpu {
    /// Who made it, as CPUID says. A machine moves only between CPUs of one maker.
    #[schema(example = "AuthenticAMD")]
    pub vendor: String,
    /// The baseline beyond which this host offers nothing, by its configuration; `host` if there is none.
    pub limit: CpuBaseline,
    /// The baselines, the widest first.
    pub baselines: Vec<OfferedBaseline>,
}

/// A baseline, seen from one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OfferedBaseline {
    /// Which one.
    pub name: CpuBaseline,
    /// What it contains: names as in `/proc/cpuinfo`, or for the place of a bit (`cpuid-7.0-ebx-9`).
    pub features: Vec<String>,
    /// Of these, the ones that this host lacks. It offers the baseline if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
}
