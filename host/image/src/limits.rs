//! Every bound that reading an image keeps to, in one place.
//!
//! What always holds: a loop over something that an image says ends at one of these, and what happens then is an error
//! that names the limit.

/// Most images in a backing chain.
pub const CHAIN_IMAGES_MAX: usize = 8;

/// Largest virtual disk: 64 TiB.
pub const VIRTUAL_BYTES_MAX: u64 = 64 << 40;

/// Most bytes that are read from the disk for one task, re-reading and decompression counted: 6 GiB.
pub const READ_BYTES_MAX: u64 = 6 << 30;

/// Most processor time of the process, in seconds. What an image makes a parser do without reading ends here.
pub const CPU_SECONDS_MAX: u64 = 60;

/// Most memory that the process maps: 2 GiB.
pub const ADDRESS_SPACE_BYTES_MAX: u64 = 2 << 30;

/// Most header extensions in a qcow2.
pub const QCOW2_EXTENSIONS_MAX: usize = 64;

/// Most entries of a partition table that are looked at.
pub const PARTITION_ENTRIES_MAX: u32 = 256;

/// Most partitions in use.
pub const PARTITIONS_MAX: usize = 128;

/// Most file systems that are opened.
pub const VOLUMES_MAX: usize = 16;

/// Most block groups of an ext file system.
pub const EXT_GROUPS_MAX: u64 = 1 << 20;

/// Largest directory, in bytes as stored.
pub const DIRECTORY_BYTES_MAX: u64 = 8 << 20;

/// Most entries of one directory that are looked at.
pub const DIRECTORY_ENTRIES_MAX: usize = 16_384;

/// Longest path, and longest target of a symbolic link, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

/// Most bytes of directories of one FAT volume that are gone through, cached ones counted: 512 MiB.
pub const DIRECTORY_WORK_BYTES_MAX: u64 = 512 << 20;

/// Most symbolic links that are followed for one path.
pub const LINKS_MAX: usize = 40;

/// Most steps from one name to the next for one path, links included.
pub const STEPS_MAX: usize = 256;

/// Largest configuration file of a boot loader.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Most boot loader entries that are read.
pub const BOOT_ENTRIES_MAX: usize = 64;

/// Longest kernel command line, in bytes: as much as a VM is started with here.
pub const COMMAND_LINE_BYTES_MAX: usize = 1536;

/// Largest kernel: 256 MiB.
pub const KERNEL_BYTES_MAX: u64 = 256 << 20;

/// Largest initrd, all its parts together: 1 GiB.
pub const INITRD_BYTES_MAX: u64 = 1 << 30;

/// Most files that make up one initrd.
pub const INITRD_FILES_MAX: usize = 8;

/// Most remarks in one answer.
pub const REMARKS_MAX: usize = 64;

/// Longest piece of an image's own text in an error or a remark, in characters.
pub const SHOWN_CHARACTERS_MAX: usize = 200;

/// Longest remark or reason in an answer, in characters.
pub const SENTENCE_CHARACTERS_MAX: usize = 16 * SHOWN_CHARACTERS_MAX;

/// Largest user data for cloud-init: 1 MiB.
pub const USER_DATA_BYTES_MAX: usize = 1 << 20;

/// Largest network configuration for cloud-init: 64 KiB.
pub const NETWORK_BYTES_MAX: usize = 64 << 10;

/// Most SSH keys of one guest.
pub const SSH_KEYS_MAX: usize = 64;

/// Longest SSH key line, in bytes: an RSA key of 16,384 bits has 2,800.
pub const SSH_KEY_BYTES_MAX: usize = 8 << 10;
