// Empty: the link check of a folder (CMakeLists.txt, kevre_add_folder) needs one source.
namespace kevre {}
