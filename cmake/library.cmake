# The one library that users link, made of the rooms' objects.
set(rooms ncollapse_host ncollapse_cpu ncollapse_ufm ncollapse_io)
set(vendors BLAS::BLAS ${LAPACKE_LIBRARY} ${LBFGS_LIBRARY} OpenMP::OpenMP_CXX PkgConfig::libzip ZLIB::ZLIB)
if(NCOLLAPSE_HAS_CUDA)
  list(APPEND rooms ncollapse_cuda)
  list(APPEND vendors CUDA::cudart CUDA::cublas CUDA::cusolver)
endif()

add_library(ncollapse_parts INTERFACE)  # for tests: the same objects, with hidden symbols in reach
foreach(room IN LISTS rooms)
  target_link_libraries(ncollapse_parts INTERFACE ${room} $<TARGET_OBJECTS:${room}>)
endforeach()
target_link_libraries(ncollapse_parts INTERFACE ${vendors})

add_library(ncollapse SHARED)
add_library(ncollapse::ncollapse ALIAS ncollapse)
foreach(room IN LISTS rooms)
  target_sources(ncollapse PRIVATE $<TARGET_OBJECTS:${room}>)
endforeach()
target_link_libraries(ncollapse PRIVATE ${vendors})
target_compile_features(ncollapse PUBLIC cxx_std_20)
set_target_properties(ncollapse PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR} LINKER_LANGUAGE CXX
  INSTALL_RPATH_USE_LINK_PATH ON)  # to vendors that lie where the loader does not look, as CUDA may
generate_export_header(ncollapse EXPORT_FILE_NAME ${PROJECT_BINARY_DIR}/include/ncollapse/export.hpp)
configure_file(cmake/version.hpp.in ${PROJECT_BINARY_DIR}/include/ncollapse/version.hpp @ONLY)
file(GLOB public_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/ncollapse/*.hpp)
target_sources(ncollapse PUBLIC FILE_SET HEADERS
  BASE_DIRS ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include
  FILES ${public_headers} ${PROJECT_BINARY_DIR}/include/ncollapse/export.hpp
        ${PROJECT_BINARY_DIR}/include/ncollapse/version.hpp)

# --- components: headers that need another library, which users have themselves; see ncollapseConfig.cmake.in
if(NCOLLAPSE_HAS_MPI)
  add_library(ncollapse_mpi INTERFACE)
  add_library(ncollapse::mpi ALIAS ncollapse_mpi)
  target_link_libraries(ncollapse_mpi INTERFACE ncollapse MPI::MPI_CXX)
endif()
if(NCOLLAPSE_HAS_NCCL)
  add_library(ncollapse_nccl INTERFACE)
  add_library(ncollapse::nccl ALIAS ncollapse_nccl)
  target_link_libraries(ncollapse_nccl INTERFACE ncollapse ${NCCL_LIBRARY} CUDA::cudart)
  target_include_directories(ncollapse_nccl INTERFACE ${NCCL_INCLUDE_DIR})
endif()

# --- install: find_package(ncollapse), then ncollapse::ncollapse; or pkg-config ncollapse
if(NOT NCOLLAPSE_INSTALL)
  return()
endif()
install(TARGETS ncollapse EXPORT ncollapseTargets FILE_SET HEADERS
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})  # for consumers with a CMake that knows no file sets
install(EXPORT ncollapseTargets NAMESPACE ncollapse:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ncollapse)
configure_package_config_file(cmake/ncollapseConfig.cmake.in ${PROJECT_BINARY_DIR}/ncollapseConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ncollapse)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
           OUTPUT_VARIABLE include_from_pkgconfig)
configure_file(cmake/ncollapse.pc.in ${PROJECT_BINARY_DIR}/ncollapse.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/ncollapse.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ncollapseConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ncollapseConfig.cmake ${PROJECT_BINARY_DIR}/ncollapseConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ncollapse)
