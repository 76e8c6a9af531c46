//! The engine in which all plugins run, and the way from bytes to something that can be opened.
//!
//! Always: one engine for the process; code that runs was compiled here or authenticated by the cache; a component is
//! linked with nothing but what was granted. Never: what a world means.

use crate::{
    bindings::described::Described,
    cache::{CacheError, CodeCache},
    fault::Fault,
    instance::{Budget, new_store, run},
    limits::{Limits, MAX_MEMORY_BYTES, SandboxConfig},
    manifest::Manifest,
    record::{Recorder, World},
    ticker::Ticker,
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};
use wasmtime::{
    Config, Engine, PoolingAllocationConfig,
    component::{Component, InstancePre, Linker, types::ComponentItem},
};

/// Stack of a plugin, in bytes. It lies on the calling thread's own stack, which must be larger.
const STACK_BYTES: usize = 512 << 10;

/// Why the sandbox cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The engine refused its settings: almost always too little address space.
    #[error(
        "The plugin engine cannot be started. Check that the daemon's address space (ulimit -v) is not limited."
    )]
    Engine(#[source] wasmtime::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The ticker thread cannot be started.
    #[error("The thread that limits the time of plugins cannot be started.")]
    Thread(#[source] std::io::Error),
}

/// Why bytes are not a plugin.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Larger than a component may be.
    #[error("The component has {bytes} bytes, at most {max} are allowed.")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not a WebAssembly component, or not a valid one.
    #[error(
        "This is not a valid WebAssembly component. Build it as a component (a core module is not enough)."
    )]
    Invalid(#[source] wasmtime::Error),
    /// It does not export `dwcp:types/plugin`, or its `manifest` failed.
    #[error("The component's manifest cannot be read. It must export dwcp:types/plugin@0.1.0.")]
    NoManifest(#[source] Fault),
    /// The manifest breaks a bound.
    #[error("The component's manifest is wrong: {0}.")]
    BadManifest(String),
    /// It does not export a function that was to be called.
    #[error("The component exports no function {export}.")]
    NoExport {
        /// The function.
        export: String,
    },
    /// It imports something that its manifest does not ask for.
    #[error(
        "The component imports {import}, which its manifest does not list among its capabilities."
    )]
    Undeclared {
        /// The import.
        import: String,
    },
}

/// Why a compiled plugin cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is for another world.
    #[error("Plugin {plugin} implements {found}, not the world {wanted}.")]
    OtherWorld {
        /// Its address.
        plugin: String,
        /// What its manifest says.
        found: String,
        /// What was to be opened.
        wanted: World,
    },
    /// It imports something that was not granted.
    #[error(
        "Plugin {plugin} imports {import}, which is not granted. Grant it at installation, or do not use the plugin."
    )]
    NotGranted {
        /// Its address.
        plugin: String,
        /// The import.
        import: String,
    },
    /// It imports something that this host does not have.
    #[error("Plugin {plugin} imports {import}, which this host does not provide.")]
    NotProvided {
        /// Its address.
        plugin: String,
        /// The import.
        import: String,
    },
    /// Its exports are not those of its world.
    #[error("Plugin {plugin} does not export what its world {world} asks for.")]
    Exports {
        /// Its address.
        plugin: String,
        /// The world.
        world: World,
        /// What is missing.
        #[source]
        source: wasmtime::Error,
    },
    /// A limit is larger than the sandbox can give.
    #[error(
        "A memory limit of {bytes} bytes is more than the sandbox can give ({MAX_MEMORY_BYTES})."
    )]
    Limits {
        /// What was wanted.
        bytes: usize,
    },
}

/// How a plugin is opened.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What it may use.
    pub limits: Limits,
    /// Its configuration, a JSON object.
    pub configuration: String,
    /// The imports that the operator granted.
    pub granted: BTreeSet<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            limits: Limits::default(),
            configuration: "{}".into(),
            granted: BTreeSet::new(),
        }
    }
}

/// A component that can be opened. Cheap to clone.
#[derive(Clone)]
pub struct Compiled {
    pub(crate) component: Component,
    digest: String,
    manifest: Arc<Manifest>,
    imports: Arc<[String]>,
    size_bytes: usize,
}

impl Compiled {
    /// SHA-256 of the component, hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What it says of itself, within its bounds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it imports that is more than types, ascending. Empty for a pure plugin.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Size of the component, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled")
            .field("plugin", &self.manifest.address())
            .field("digest", &self.digest)
            .field("imports", &self.imports)
            .finish_non_exhaustive()
    }
}

/// The sandbox: one for the process.
pub struct Sandbox {
    engine: Engine,
    pub(crate) ticker: Ticker,
    cache: CodeCache,
    component_bytes: usize,
    manifest_ms: u64,
    pub(crate) recorder: Arc<dyn Recorder>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Starts the engine.
    pub fn new(config: SandboxConfig) -> Result<Arc<Sandbox>, SandboxError> {
        let engine = Engine::new(&engine_config(config.instances)).map_err(SandboxError::Engine)?;
        let cache = CodeCache::open(
            &config.cache_dir,
            &config.key_file,
            engine_identity(&engine),
            config.cache_bytes,
        )?;
        let ticker = Ticker::start(&engine).map_err(SandboxError::Thread)?;
        Ok(Arc::new(Sandbox {
            engine,
            ticker,
            cache,
            component_bytes: config.component_bytes,
            manifest_ms: config.manifest_ms,
            recorder: config.recorder,
        }))
    }

    /// Checks and compiles a component, or takes its code from the cache; reads its manifest.
    ///
    /// Takes milliseconds for a small component, many seconds for one of tens of megabytes.
    pub fn compile(&self, wasm: &[u8]) -> Result<Compiled, CompileError> {
        let (component, digest) = self.component(wasm)?;
        let imports = imports_of(&component, &self.engine);
        let manifest = self.read_manifest(&component)?;
        if let Some(import) = imports
            .iter()
            .find(|i| !manifest.capabilities.iter().any(|c| c.name == **i))
        {
            return Err(CompileError::Undeclared {
                import: import.clone(),
            });
        }
        Ok(Compiled {
            component,
            digest: hex::encode(digest),
            manifest: Arc::new(manifest),
            imports: imports.into(),
            size_bytes: wasm.len(),
        })
    }

    /// File in which the compiled code of the component with this digest is kept.
    pub fn cache_file(&self, wasm: &[u8]) -> std::path::PathBuf {
        self.cache.path(&Sha256::digest(wasm).into())
    }

    /// The component, from the cache or compiled and kept, and its SHA-256.
    pub(crate) fn component(&self, wasm: &[u8]) -> Result<(Component, [u8; 32]), CompileError> {
        if wasm.len() > self.component_bytes {
            return Err(CompileError::TooLarge {
                bytes: wasm.len(),
                max: self.component_bytes,
            });
        }
        let digest: [u8; 32] = Sha256::digest(wasm).into();
        let component = match self.cached(&digest) {
            Some(component) => component,
            None => {
                let component =
                    Component::from_binary(&self.engine, wasm).map_err(CompileError::Invalid)?;
                let code = component.serialize().map_err(CompileError::Invalid)?;
                self.cache.store(&digest, &code);
                component
            }
        };
        Ok((component, digest))
    }

    fn cached(&self, digest: &[u8; 32]) -> Option<Component> {
        let file = self.cache.load(digest)?;
        // SAFETY: the bytes were authenticated with a key that only this user can read, as made by this engine from
        // the component of this digest; they are in memory and cannot change any more.
        let loaded = unsafe { Component::deserialize(&self.engine, &file[CodeCache::CODE_AT..]) };
        loaded
            .inspect_err(|error| tracing::warn!(%error, "cached plugin code does not fit this engine; compiling again"))
            .ok()
    }

    /// Runs `manifest` on an instance whose imports, if any, trap when they are called.
    fn read_manifest(&self, component: &Component) -> Result<Manifest, CompileError> {
        let invalid = CompileError::Invalid;
        let mut linker = Linker::<Budget>::new(&self.engine);
        linker
            .define_unknown_imports_as_traps(component)
            .map_err(invalid)?;
        let pre = linker.instantiate_pre(component).map_err(invalid)?;
        let limits = Limits {
            output_bytes: 256 << 10,
            ..Limits::default()
        };
        let mut store = new_store(&pre, limits);
        let manifest = run(&self.ticker, &mut store, self.manifest_ms, |store| {
            let instance = pre.instantiate(&mut *store)?;
            Described::new(&mut *store, &instance)?
                .dwcp_types_plugin()
                .call_manifest(store)
        })
        .map_err(CompileError::NoManifest)?;
        Manifest::checked(manifest).map_err(CompileError::BadManifest)
    }

    /// Links a component with what `setup` grants; refuses every import beyond.
    pub(crate) fn link(
        &self,
        compiled: &Compiled,
        setup: &Setup,
    ) -> Result<InstancePre<Budget>, OpenError> {
        let plugin = || compiled.manifest.address();
        if setup.limits.memory_bytes > MAX_MEMORY_BYTES {
            return Err(OpenError::Limits {
                bytes: setup.limits.memory_bytes,
            });
        }
        if let Some(import) = compiled
            .imports()
            .iter()
            .find(|i| !setup.granted.contains(*i))
        {
            return Err(OpenError::NotGranted {
                plugin: plugin(),
                import: import.clone(),
            });
        }
        // This version of the host provides no interface to plugins, so a grant cannot be honoured either.
        if let Some(import) = compiled.imports().first() {
            return Err(OpenError::NotProvided {
                plugin: plugin(),
                import: import.clone(),
            });
        }
        self.link_pure(&compiled.component).map_err(|error| {
            tracing::warn!(%error, plugin = plugin(), "plugin cannot be linked");
            OpenError::NotProvided {
                plugin: plugin(),
                import: error.to_string(),
            }
        })
    }

    /// Links a component with nothing.
    pub(crate) fn link_pure(&self, component: &Component) -> wasmtime::Result<InstancePre<Budget>> {
        Linker::new(&self.engine).instantiate_pre(component)
    }
}

/// What a component imports that is more than types.
fn imports_of(component: &Component, engine: &Engine) -> Vec<String> {
    let mut imports: Vec<String> = component
        .component_type()
        .imports(engine)
        .filter(|(_, item)| !is_only_types(&item.ty, engine))
        .map(|(name, _)| name.to_owned())
        .collect();
    imports.sort();
    imports
}

fn is_only_types(item: &ComponentItem, engine: &Engine) -> bool {
    match item {
        ComponentItem::Type(_) => true,
        ComponentItem::ComponentInstance(instance) => instance
            .exports(engine)
            .all(|(_, item)| is_only_types(&item.ty, engine)),
        _ => false,
    }
}

/// Settings that make decisions repeatable (NaN, relaxed SIMD, no threads) and instances cheap (pool).
fn engine_config(instances: u32) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(3))
        .total_memories(instances)
        .total_tables(instances)
        .max_memory_size(MAX_MEMORY_BYTES)
        .max_memories_per_module(2)
        .max_tables_per_module(4)
        .table_elements(200_000)
        .max_core_instance_size(4 << 20)
        .max_component_instance_size(8 << 20)
        .max_unused_warm_slots(16)
        .linear_memory_keep_resident(64 << 10)
        .table_keep_resident(16 << 10);
    let mut config = Config::new();
    config
        .allocation_strategy(pool)
        .wasm_component_model(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .max_wasm_stack(STACK_BYTES);
    config
}

/// SHA-256 of all that compiled code depends on: version, target, settings.
fn engine_identity(engine: &Engine) -> [u8; 32] {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut sha = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sha);
    sha.0.finalize().into()
}
