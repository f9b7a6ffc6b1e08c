// dlopen(RTLD_DEEPBIND): such a module asks libc before it asks a preloaded library (PHP loads its extensions
// so), and its calls would reach the kernel's own IPC unnoticed. After each such dlopen the module's
// references to our functions are set to ours; its other references stay as the program wished. dlsym() of a
// handle of libc gives ours too (Python's ctypes asks so). Other calls of dlopen and dlsym pass through by a
// tail call, so that the loader sees their true caller (whose RUNPATH counts, and what RTLD_NEXT means).
// Threads: any; the loader's lock is held while objects are walked.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "ipc/preload/connection.h"

namespace kevre::ipc::preload {
namespace {
using Dlopen = void* (*)(const char*, int);
using Dlsym = void* (*)(void*, const char*);
Dlopen g_dlopen = nullptr;
Dlsym g_dlsym = nullptr;

#if defined(__x86_64__)
constexpr uint32_t kSlot = R_X86_64_JUMP_SLOT, kData = R_X86_64_GLOB_DAT, kAddress = R_X86_64_64;
#elif defined(__aarch64__)
constexpr uint32_t kSlot = R_AARCH64_JUMP_SLOT, kData = R_AARCH64_GLOB_DAT, kAddress = R_AARCH64_ABS64;
#endif

constexpr const char* kNames[] = {
    "shmget",       "shmat",  "shmdt",   "shmctl",   "semget",   "semop",      "semtimedop",
    "semctl",       "msgget", "msgsnd",  "msgrcv",   "msgctl",   "ftok",       "syscall",
    "open",         "open64", "openat",  "openat64", "__open_2", "__open64_2", "__openat_2",
    "__openat64_2", "fopen",  "fopen64", "chroot",   "dlopen"};

struct Ours {
  uintptr_t of[sizeof kNames / sizeof *kNames] = {};
  uintptr_t base = 0;  // of this library
};

struct Object {
  uintptr_t base = 0;
  const char* strings = nullptr;
  const ElfW(Sym) * symbols = nullptr;
  const ElfW(Rela) * tables[2] = {nullptr, nullptr};
  size_t bytes[2] = {0, 0};
  uintptr_t sealed = 0, sealed_end = 0;  // read-only after relocation
};

uintptr_t where(const Object& object, ElfW(Addr) address) {  // glibc has relocated these, mostly
  return address < object.base ? object.base + address : address;
}

bool read_object(const dl_phdr_info& info, Object* object) {
  object->base = info.dlpi_addr;
  const ElfW(Dyn)* entry = nullptr;
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    const auto& header = info.dlpi_phdr[i];
    if (header.p_type == PT_DYNAMIC) {
      entry = reinterpret_cast<const ElfW(Dyn)*>(info.dlpi_addr + header.p_vaddr);
    } else if (header.p_type == PT_GNU_RELRO) {
      object->sealed = info.dlpi_addr + header.p_vaddr;
      object->sealed_end = object->sealed + header.p_memsz;
    }
  }
  for (; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
    switch (entry->d_tag) {
      case DT_STRTAB:
        object->strings = reinterpret_cast<const char*>(where(*object, entry->d_un.d_ptr));
        break;
      case DT_SYMTAB:
        object->symbols = reinterpret_cast<const ElfW(Sym)*>(where(*object, entry->d_un.d_ptr));
        break;
      case DT_JMPREL:
        object->tables[0] = reinterpret_cast<const ElfW(Rela)*>(where(*object, entry->d_un.d_ptr));
        break;
      case DT_PLTRELSZ:
        object->bytes[0] = entry->d_un.d_val;
        break;
      case DT_RELA:
        object->tables[1] = reinterpret_cast<const ElfW(Rela)*>(where(*object, entry->d_un.d_ptr));
        break;
      case DT_RELASZ:
        object->bytes[1] = entry->d_un.d_val;
        break;
      default:
        break;
    }
  }
  return object->strings != nullptr && object->symbols != nullptr;
}

void write_slot(const Object& object, uintptr_t at, uintptr_t value) {
  auto* slot = reinterpret_cast<uintptr_t*>(at);
  if (__atomic_load_n(slot, __ATOMIC_RELAXED) == value) {
    return;
  }
  const bool sealed = at >= object.sealed && at < object.sealed_end;
  auto* page = reinterpret_cast<void*>(at & ~uintptr_t{4095});
  if (sealed && ::mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0) {
    return;
  }
  __atomic_store_n(slot, value, __ATOMIC_RELEASE);
  if (sealed) {
    ::mprotect(page, 4096, PROT_READ);
  }
}

int redirect(dl_phdr_info* info, size_t /*size*/, void* pointer) {
  const auto& ours = *static_cast<const Ours*>(pointer);
  Object object;
  if (info->dlpi_addr == ours.base || !read_object(*info, &object)) {
    return 0;
  }
  for (int table = 0; table < 2; ++table) {
    const size_t count = object.tables[table] == nullptr ? 0 : object.bytes[table] / sizeof(ElfW(Rela));
    for (size_t i = 0; i < count; ++i) {
      const ElfW(Rela)& entry = object.tables[table][i];
      const auto type = static_cast<uint32_t>(ELF64_R_TYPE(entry.r_info));
      if (type != kSlot && type != kData && !(type == kAddress && entry.r_addend == 0)) {
        continue;
      }
      const ElfW(Sym)& symbol = object.symbols[ELF64_R_SYM(entry.r_info)];
      if (symbol.st_shndx != SHN_UNDEF || symbol.st_name == 0) {
        continue;
      }
      for (size_t name = 0; name < sizeof kNames / sizeof *kNames; ++name) {
        if (::strcmp(object.strings + symbol.st_name, kNames[name]) == 0) {
          write_slot(object, object.base + entry.r_offset, ours.of[name]);
        }
      }
    }
  }
  return 0;
}

void redirect_all() {
  Ours ours;
  Dl_info self;
  if (::dladdr(reinterpret_cast<void*>(&redirect_all), &self) == 0) {
    return;
  }
  ours.base = reinterpret_cast<uintptr_t>(self.dli_fbase);
  for (size_t i = 0; i < sizeof kNames / sizeof *kNames; ++i) {
    ours.of[i] = reinterpret_cast<uintptr_t>(::dlsym(RTLD_DEFAULT, kNames[i]));
    Dl_info found;
    const bool is_ours = ours.of[i] != 0 && ::dladdr(reinterpret_cast<void*>(ours.of[i]), &found) != 0;
    if (!is_ours) {
      return;
    }
  }
  ::dl_iterate_phdr(redirect, &ours);
}

// The name has had two versions; dlsym itself cannot be asked for dlsym.
__attribute__((constructor)) void find_dlsym() {
  constexpr const char* kVersions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};
  for (const char* version : kVersions) {
    if (g_dlsym == nullptr) {
      g_dlsym = reinterpret_cast<Dlsym>(::dlvsym(RTLD_NEXT, "dlsym", version));
    }
  }
}

bool is_name(const char* name) {
  for (const char* one : kNames) {
    if (::strcmp(name, one) == 0) {
      return true;
    }
  }
  return false;
}

// What libc has of this name is ours; what any other object has is that object's.
__attribute__((noinline)) void* find_name(void* handle, const char* name) {
  void* const found = g_dlsym(handle, name);
  Dl_info object, libc;
  const bool of_libc = found != nullptr && ::dladdr(found, &object) != 0 &&
                       ::dladdr(reinterpret_cast<void*>(g_dlopen), &libc) != 0 &&
                       object.dli_fbase == libc.dli_fbase;
  void* const ours = of_libc ? g_dlsym(RTLD_DEFAULT, name) : nullptr;
  return ours != nullptr ? ours : found;
}

__attribute__((constructor)) void find_dlopen() {
  g_dlopen = reinterpret_cast<Dlopen>(::dlsym(RTLD_NEXT, "dlopen"));
}

__attribute__((noinline)) void* open_deep(const char* path, int flags) {
  void* const handle = g_dlopen(path, flags);
  if (handle != nullptr) {
    const int saved_errno = errno;
    redirect_all();
    errno = saved_errno;
  }
  return handle;
}
}  // namespace
}  // namespace kevre::ipc::preload

using namespace kevre::ipc::preload;
KEVRE_EXPORT void* dlsym(void* handle, const char* name) noexcept {
  if (g_dlsym == nullptr) {
    find_dlsym();
  }
  if (handle == RTLD_NEXT || handle == RTLD_DEFAULT || g_dlopen == nullptr || !is_name(name)) {
    return g_dlsym(handle, name);
  }
  return find_name(handle, name);
}

KEVRE_EXPORT void* dlopen(const char* path, int flags) noexcept {
  if (g_dlopen == nullptr) {
    find_dlopen();  // by a constructor that ran before ours
  }
  if ((flags & RTLD_DEEPBIND) == 0) {
    return g_dlopen(path, flags);  // a jump: see above
  }
  return open_deep(path, flags);
}
