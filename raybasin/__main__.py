from raybasin.cli import main

main()
